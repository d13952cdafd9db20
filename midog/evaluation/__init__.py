"""Predictions against a ground truth: the organisers' figures, plots, and the operating point."""
