"""Recommenders: what is asked of one, the kinds that settings may name, and matrix factorisation, which is here.

To add one, give the Trainer a module, or register a factory under a name, for settings to choose it by: docs/models.md.
"""

from bidistill.models.base import BlockModel, FactorModel, Recommender, TableModel
from bidistill.models.kinds import build_model, register_model
from bidistill.models.mf import MF

__all__ = ["MF", "BlockModel", "FactorModel", "Recommender", "TableModel", "build_model", "register_model"]
