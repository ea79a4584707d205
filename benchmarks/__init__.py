"""What the documents state, measured: `make bench`. Run it on a quiet machine."""
