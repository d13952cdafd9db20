"""What an image is to everything else: pixels with a scale, whatever the file format."""
