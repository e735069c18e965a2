"""ItemScorers of scores that are there, for tests."""


class Made:
    """Gives blocks of scores [B, N], and writes down which it was asked for."""

    def __init__(self, scores, asked=None):
        self.scores, self.asked = scores, [] if asked is None else asked
        self.n_rows, self.n_items = scores.shape
        self.device = scores.device

    def block(self, first, stop):
        self.asked.append((self.n_rows, first, stop))
        return self.scores[:, first:stop]


class WithListed(Made):
    def listed(self, ids):
        return self.scores.gather(1, ids)


class WithTake(Made):
    def take(self, rows):
        return type(self)(self.scores[rows], self.asked)


class WithBoth(WithListed, WithTake):
    pass
