"""What a run will cost: calls, tokens, price and time, from its plan, before anything is generated."""
