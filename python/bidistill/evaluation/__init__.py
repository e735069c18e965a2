"""Evaluation on the full catalog: ranks, metrics, and how certain their means are."""
