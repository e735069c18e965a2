"""Distil two models of one's own: a hand-written loop around bdkernels.sample and bdkernels.distill_loss.

A teacher and a student learn made-up tastes alone, then go on twice: alone, and with each other's help.
"""

from copy import deepcopy

import torch
from torch.nn import Embedding, Module
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from bdkernels import Factors, Seen, distill_loss, rank, sample

torch.manual_seed(0)
N_USERS, N_ITEMS = 500, 600
tastes = torch.randn(N_USERS, 8) @ torch.randn(8, N_ITEMS) + 1.5 * torch.randn(N_ITEMS)
liked = (tastes - torch.empty_like(tastes).exponential_().log()).topk(25).indices  # with some chance in it
test, train = liked[:, torch.randperm(25)].split([5, 20], 1)  # item ids [N_USERS, 5 and 20]
labels = (torch.arange(60) < 20).float().expand(128, 60)
seen = Seen.from_pairs(torch.arange(N_USERS).repeat_interleave(20), train.flatten(), N_USERS)


class Model(Module):
    def __init__(self, dim):
        super().__init__()
        self.user, self.item = (Embedding.from_pretrained(0.05 * torch.randn(n, dim), False) for n in tastes.shape)

    def forward(self, users, items):  # [B], [B, C] -> [B, C]
        return (self.item(items) @ self.user(users).unsqueeze(2)).squeeze(2)


def fit(models, steps, lambdas=None):
    optimizer = torch.optim.Adam([p for m in models for p in m.parameters()], lr=0.02, weight_decay=2e-4)
    for step in range(steps):
        users = torch.randperm(N_USERS)[:128]
        items = torch.cat([train[users], torch.randint(N_ITEMS, (128, 40))], 1)  # 20 positives, 40 that mostly are not
        losses = [bce(model(users, items), labels) for model in models]
        if lambdas is not None:
            teacher, student = (Factors(model.user.weight[users], model.item.weight) for model in models)
            draws = sample(teacher, student, 10, seen.rows(users), step=step, user_ids=users)
            for i, (ids, mask) in enumerate((draws.to_teacher, draws.to_student)):
                learner, guide = (model(users, ids.clamp(min=0)) for model in (models[i], models[1 - i]))
                losses[i] = losses[i] + lambdas[i] * distill_loss(learner, guide, mask=mask)
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # each loss has a gradient for its own model alone
        optimizer.step()


def ndcg(model, k=50):
    ranks = rank(Factors(model.user.weight, model.item.weight), test, seen)  # [N_USERS, 5], 1 = best of the unseen
    return ((ranks <= k) / torch.log2(ranks + 1.0)).sum(1).mean() / (1 / torch.log2(torch.arange(2.0, 7.0))).sum()


fit(start := (Model(32), Model(4)), 250)
print("NDCG@50 before:            teacher {:.4f}, student {:.4f}".format(*map(ndcg, start)))
for name, lambdas in (("more steps alone: ", None), ("with distillation:", (0.1, 2.0))):
    torch.manual_seed(1)
    fit(models := deepcopy(start), 150, lambdas)
    print("NDCG@50 {} teacher {:.4f}, student {:.4f}".format(name, *map(ndcg, models)))
