"""Training data: images in memory or on disk, what a network sees of them, and batches that can be repeated."""
