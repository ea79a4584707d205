"""Opening, reading and hashing the files of sources."""
