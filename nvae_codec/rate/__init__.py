"""What files cost: negative ELBOs of both networks, and the ledger that leads from them to a file's size."""
