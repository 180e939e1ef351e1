"""Looking at what alignment does: displays, as scikit-learn has them, and scorers."""
