"""What several benchmarks share: the command line, digits, timing, the cache, tables, and the paper's search."""
