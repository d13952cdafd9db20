"""Offline work: recipes, labelled data, training, speed. Nothing here is in the container."""
