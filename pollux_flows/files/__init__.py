"""Opening, reading and hashing the files that sources point to."""
