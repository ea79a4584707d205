"""Batches: the parts that the batch systems of all providers share."""
