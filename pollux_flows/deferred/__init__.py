"""Deferred delivery: submit prompts to a provider's batch system now, and collect the answers later."""
