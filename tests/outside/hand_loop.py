"""A training loop of one's own, in which a Distiller applies a method to the two models."""

import torch
from bidistill import Distiller
from torch.nn.functional import softplus

from bdkernels import Seen


class Loop:
    def __init__(self, method, teacher, student, users, items):
        self.models, self.users, self.items, self.step = (teacher, student), users, items, 0
        seen = Seen.from_pairs(users, items, teacher.n_users)
        self.distiller = Distiller(method, seen, teacher.n_items, samples=4, resample_every=10, pool=8)
        self.optimizer = torch.optim.Adam([*teacher.parameters(), *student.parameters()], lr=0.02)

    def run(self, steps):
        """The distillation losses of each step."""
        history = []
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.step)
            some = torch.randint(len(self.users), (128,), generator=generator)
            users, items = self.users[some], self.items[some][:, None]
            others = torch.randint(self.models[0].n_items, (128, 2), generator=generator)
            losses = self.distiller(users, *self.models)
            loss = 0.1 * losses["teacher"] + 2.0 * losses["student"]
            for model in self.models:
                loss = loss + softplus(-model.score(users, items)).mean() + softplus(model.score(users, others)).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            history.append({name: each.item() for name, each in losses.items()})
        return history

    def state_dict(self):
        parts = {"teacher": self.models[0], "student": self.models[1], "optimizer": self.optimizer}
        parts["distiller"] = self.distiller
        return {"step": self.step, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state):
        self.step = state["step"]
        for model, name in zip(self.models, ("teacher", "student"), strict=True):
            model.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.distiller.load_state_dict(state["distiller"])
