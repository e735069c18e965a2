"""Data: reading, describing, splitting and making up interactions."""

from bidistill.data.given import given_split, is_split
from bidistill.data.interactions import Interactions
from bidistill.data.movielens import movielens_100k
from bidistill.data.reader import read
from bidistill.data.splits import Split, split
from bidistill.data.synthetic import generate
from bidistill.data.write import write_interactions

__all__ = [
    "Interactions",
    "Split",
    "generate",
    "given_split",
    "is_split",
    "movielens_100k",
    "read",
    "split",
    "write_interactions",
]
