"""State: the records that outlive a process, and the identities by which they are found."""
