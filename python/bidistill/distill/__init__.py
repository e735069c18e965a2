"""Distillation methods, one file each; what a method is, and what applies it to two models."""

from bidistill.distill.bidirectional import Bidirectional, make_weight
from bidistill.distill.distiller import Distiller
from bidistill.distill.method import Method, Request, make_method, register_method

__all__ = ["Bidirectional", "Distiller", "Method", "Request", "make_method", "make_weight", "register_method"]
