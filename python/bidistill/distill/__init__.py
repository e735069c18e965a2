"""Distillation methods, one file each."""

from bidistill.distill.bidirectional import Bidirectional, make_weight

__all__ = ["Bidirectional", "make_weight"]
