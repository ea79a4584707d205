"""Estimation of the calls, tokens, cost and time of a run, from its plan, before anything is generated."""
