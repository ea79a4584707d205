"""Estimation: the calls, tokens, price and time of a run, from its plan, before anything is generated."""
