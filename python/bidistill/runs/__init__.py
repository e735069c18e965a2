"""Runs on disk: their folder, checkpoints and models, and how they grow."""
