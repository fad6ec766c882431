"""Image files to images and back, a file for each format."""
