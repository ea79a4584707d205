"""Mapping: a prompt over each row of a table, answered a chunk at a time."""
