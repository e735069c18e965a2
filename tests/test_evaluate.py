"""Full-catalog metrics against an independent oracle: dense float64 scores, sorted user by user in plain Python."""

import math
import sys

import numpy as np
import pytest
import torch
from bidistill import MF, Split, UserError, compare, evaluate
from bidistill.evaluation.ranks import ranks
from bidistill.metrics import means, metrics_of

import bdkernels


def make_split(n_users, n_items, held, seed):
    """`held` items a user in val and in test (a sequence: that many for the users in turn), random training items."""
    rng = np.random.default_rng(seed)
    parts = {"train": [], "val": [], "test": []}
    for user in range(n_users):
        items = rng.permutation(n_items)
        m = held[user % len(held)]
        n_train = rng.integers(1, max(2, (n_items - 2 * m) // 2))
        parts["val"] += [(user, i) for i in items[:m]]
        parts["test"] += [(user, i) for i in items[m : 2 * m]]
        parts["train"] += [(user, i) for i in items[2 * m : 2 * m + n_train]]
    arrays = {}
    for name, pairs in parts.items():
        pairs = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        pairs = pairs[rng.permutation(len(pairs))]
        arrays |= {f"{name}_users": pairs[:, 0].copy(), f"{name}_items": pairs[:, 1].copy()}
    return Split(n_users, n_items, **arrays, user_ids=np.arange(n_users), item_ids=np.arange(n_items))


def make_model(split, dim=3, seed=0, ties=False):
    """Integers as factors: every score is exact in float32 and in float64; with few values there are many ties."""
    model = MF(split.n_users, split.n_items, dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator) * (0 if ties == "all" else 1))
            if not ties:
                parameter.copy_(torch.randint(-500, 500, parameter.shape, generator=generator))
    return model


def oracle_ranks(model, split, part):
    scores = (model.user_factors.weight.double() @ model.item_factors.weight.double().T).detach().numpy()
    scores = scores + model.item_bias.weight.double().detach().numpy().T
    known = set(zip(split.train_users.tolist(), split.train_items.tolist(), strict=True))
    if part == "test":
        known |= set(zip(split.val_users.tolist(), split.val_items.tolist(), strict=True))
    result = []
    for user, item in zip(*split.part(part), strict=True):
        candidates = [i for i in range(split.n_items) if (user, i) not in known]
        order = sorted(candidates, key=lambda i, user=user: (-scores[user, i], i))
        result.append(order.index(item) + 1)
    return np.array(result)


def oracle_metrics(users, found, ks):
    per_user = {}
    for user, rank in zip(users.tolist(), found.tolist(), strict=True):
        per_user.setdefault(user, []).append(rank)
    result = {"mrr": np.mean([1 / min(r) for r in per_user.values()]), "users": len(per_user)}
    for k in ks:
        rows = []
        for r in per_user.values():
            hits = [x for x in r if x <= k]
            dcg = sum(1 / math.log2(1 + x) for x in hits)
            ideal = sum(1 / math.log2(1 + x) for x in range(1, min(k, len(r)) + 1))
            rows.append((len(hits) > 0, dcg / ideal, len(hits) / len(r), len(hits) / k))
        for name, value in zip(("hr", "ndcg", "recall", "precision"), np.mean(rows, axis=0), strict=True):
            result[f"{name}@{k}"] = value
    return result


CASES = [
    (1, 3, (1,), False),
    (2, 7, (1,), True),
    (13, 31, (1,), False),
    (13, 31, (3, 0, 1, 7), False),
    (29, 67, (5, 1), True),
    (8, 23, (2,), "all"),
    (40, 101, (0, 0, 4), False),
]


@pytest.mark.parametrize(("n_users", "n_items", "held", "ties"), CASES)
@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("batch", [1, 5, 256])
def test_against_the_oracle(n_users, n_items, held, ties, part, batch):
    split = make_split(n_users, n_items, held, seed=n_users)
    model = make_model(split, ties=ties)
    wanted = oracle_ranks(model, split, part)
    assert ranks(model, split, part, batch_size=batch).tolist() == wanted.tolist()
    ks = (1, 2, n_items)
    found = evaluate(model, split, part, ks, batch)
    assert found == pytest.approx(oracle_metrics(split.part(part)[0], wanted, ks), rel=1e-12)


def test_large_batches_are_cut_where_users_have_many_items(monkeypatch):
    split = make_split(700, 31, (5, 1, 2), seed=4)
    model, sizes, evaluation = make_model(split), [], sys.modules["bidistill.evaluation.ranks"]
    monkeypatch.setattr(evaluation, "PAIRS", 256 * 5)
    monkeypatch.setattr(
        evaluation, "rank", lambda f, ids, seen: sizes.append(ids.shape) or bdkernels.rank(f, ids, seen)
    )
    assert ranks(model, split, "val", batch_size=8192).tolist() == oracle_ranks(model, split, "val").tolist()
    assert len(sizes) > 1 and all(users <= 256 or users * items <= 256 * 5 for users, items in sizes)


def test_known_values():
    # User 0 has its two items at ranks 1 and 3, user 4 its one at rank 2.
    of_users = metrics_of(np.array([0, 4, 0]), np.array([3, 2, 1]), (1, 2))
    assert of_users["users"].tolist() == [0, 4] and of_users["hr@1"].tolist() == [1, 0]
    assert of_users["mrr"].tolist() == [1, 0.5]
    found = means(of_users)
    assert found["hr@1"] == 0.5
    assert found["recall@2"] == (1 / 2 + 1) / 2
    assert found["precision@2"] == 0.5
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg@2"] == pytest.approx((1 / ideal + 1 / math.log2(3)) / 2)
    assert found["mrr"] == 0.75
    assert found["users"] == 2


def test_compare():
    split = make_split(13, 31, (2, 1), seed=3)
    teacher, student = make_model(split, seed=1), make_model(split, dim=1, seed=2)
    found = compare(teacher, student, split, "test", batch_size=4)
    t, s = (oracle_ranks(model, split, "test") for model in (teacher, student))
    assert found.teacher_ranks.tolist() == t.tolist()
    assert found.student_ranks.tolist() == s.tolist()
    assert found.student_better == sum(a < b for a, b in zip(s, t, strict=True)) / len(t)
    assert found.teacher_better == sum(b < a for a, b in zip(s, t, strict=True)) / len(t)
    same = compare(teacher, teacher, split, "val")
    assert same.student_better == same.teacher_better == 0


def test_mistakes():
    split = make_split(5, 9, (1,), seed=0)
    model = make_model(split)
    with pytest.raises(UserError, match="must be val or test, found 'train'"):
        evaluate(model, split, "train")
    with pytest.raises(UserError, match=r"between 1 and the catalog's 9 items, found \[10, 50\]"):
        evaluate(model, split, "val")
    empty = make_split(5, 9, (0,), seed=0)
    for function in (lambda: evaluate(model, empty, "test", (1,)), lambda: compare(model, model, empty, "test")):
        with pytest.raises(UserError, match="holds out no test interactions"):
            function()


@pytest.mark.parametrize("blocks", [False, True])
def test_a_model_without_factors_is_evaluated_alike(blocks):
    """It is scored by blocks, and its ranks are those of the model with equal scores."""
    split = make_split(9, 70, held=(1, 3), seed=4)
    model = make_model(split, seed=5, ties=True)

    class Scored(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.dropout = model, torch.nn.Dropout(0.9)

        def score(self, users, items):
            return self.dropout(self.inner.score(users, items))

    class InBlocks(Scored):
        def score_block(self, users, first, stop):
            return self.dropout(self.inner.score(users, torch.arange(first, stop).expand(len(users), -1)))

    other = (InBlocks if blocks else Scored)()
    for part in ("val", "test"):
        assert np.array_equal(ranks(other, split, part, batch_size=4), oracle_ranks(model, split, part))
        assert evaluate(other, split, part, (5, 10)) == evaluate(model, split, part, (5, 10))
    assert compare(model, other, split).teacher_better == 0.0
    assert other.training
