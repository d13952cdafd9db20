"""Results that people can look at."""
