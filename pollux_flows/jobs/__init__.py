"""Deferred jobs on a Prefect server: blocks that any worker finds, and one worker at a time works on."""
