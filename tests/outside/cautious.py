"""A schedule of one's own: the learning rate is halved after each evaluation that is worse than the one before."""

from bidistill import register_scheduler


class Cautious:
    def __init__(self, optimizer, factor=0.5):
        self.optimizer, self.factor, self.last = optimizer, factor, None

    def step(self, value):
        if self.last is not None and value < self.last:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.factor
        self.last = value


register_scheduler("cautious", Cautious)
