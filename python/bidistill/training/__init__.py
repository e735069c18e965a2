"""Training: the models, one step of them, and the loop around it."""
