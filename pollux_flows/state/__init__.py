"""What outlives a process, and the names it is found by."""
