"""The search for better settings on validation: `bidistill.tune` and the command of that name."""
