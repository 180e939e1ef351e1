"""Parts of `paper.py`."""
