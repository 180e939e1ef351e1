"""The mathematics of an image in a pose, and the networks: pure functions and modules of torch."""
