"""Distillation methods, one file each."""

from bidistill.distill.bidirectional import Bidirectional, Drawn, make_weight

__all__ = ["Bidirectional", "Drawn", "make_weight"]
