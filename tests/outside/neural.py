"""A model that is no dot product: a small network over the embeddings of a user and an item. `score` is all that it has."""

import torch
from bidistill import Trainer, register_model
from torch import nn


class Neural(nn.Module):
    def __init__(self, n_users, n_items, dim, seed=0):
        super().__init__()
        self.users, self.items = nn.Embedding(n_users, dim), nn.Embedding(n_items, dim)
        self.layers = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Dropout(0.2), nn.Linear(dim, 1))

    def score(self, users, items):
        pairs = torch.cat([self.users(users)[:, None].expand(-1, items.shape[1], -1), self.items(items)], dim=2)
        return self.layers(pairs).squeeze(2)


def modules(split):
    torch.manual_seed(0)
    return {name: Neural(split.n_users, split.n_items, dim) for name, dim in (("teacher", 16), ("student", 4))}


def train(config, split):
    models = modules(split)
    return Trainer(config, split, teacher=models["teacher"], student=models["student"]).fit()


register_model("neural", Neural)  # from here on: [teacher] kind = "neural", dim = 16
