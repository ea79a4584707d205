"""Deferred jobs on a Prefect server: blocks that any worker can find, and that one worker at a time can lock."""
