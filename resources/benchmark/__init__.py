"""Speed: python -m resources.benchmark.NAME."""
