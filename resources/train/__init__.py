"""The trainings: python -m resources.train.NAME, or midog train NAME."""
