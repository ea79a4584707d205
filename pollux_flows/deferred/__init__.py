"""Deferred delivery: hand work in to a provider's batch system now, and collect the answers later."""
