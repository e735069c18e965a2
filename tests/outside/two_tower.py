"""A two-tower model of one's own: its score is a dot product, so `factors` lets all operators be fused for it."""

from dataclasses import dataclass

import torch
from bidistill import Trainer, register_model
from torch import nn

from bdkernels import Factors


class TwoTower(nn.Module):
    def __init__(self, n_users, n_items, width=8, dropout=0.2, seed=0):
        super().__init__()
        self.users = nn.Sequential(nn.Embedding(n_users, 16), nn.Dropout(dropout), nn.Linear(16, width))
        self.items = nn.Sequential(nn.Embedding(n_items, 16), nn.ReLU(), nn.Linear(16, width))
        self.register_buffer("catalog", torch.arange(n_items))

    def score(self, users, items):
        return (self.users(users)[:, None] * self.items(items)).sum(2)

    def factors(self, users):
        return Factors(self.users(users), self.items(self.catalog))


def modules(split):
    torch.manual_seed(0)
    return {name: TwoTower(split.n_users, split.n_items, width) for name, width in (("teacher", 8), ("student", 2))}


def train(config, split):
    models = modules(split)
    return Trainer(config, split, teacher=models["teacher"], student=models["student"]).fit()


@dataclass(frozen=True)
class Settings:
    width: int = 8
    dropout: float = 0.2


register_model("two_tower", TwoTower, Settings)  # from here on: [teacher] kind = "two_tower", [teacher.args] width = 8
