"""Training over several processes: the rows of items that a step needs from others, its update, and checkpoints of shards."""
