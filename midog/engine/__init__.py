"""What runs the networks: weights and devices, detectors, classifiers, the two stages."""
