"""Mapping: a prompt about each row of a table, answered a chunk at a time."""
