"""What the operators are given: factors of a model, seen items, and the inputs of a training step."""
