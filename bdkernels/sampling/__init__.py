"""The exact sampler, the keys of its random numbers, and ranks that are estimated from a subset of the items."""
