"""Coverage, popularity and cold items: by hand, by counting user by user, and through settings, tables and commands."""

import json

import numpy as np
import pytest
import torch
from bidistill import Config, Split, Trainer, UserError, evaluate, generate, open_run, split
from bidistill.catalog_metrics import Catalog, Lists, made
from bidistill.cli import main
from bidistill.evaluation.evaluate import compare
from bidistill.models.generator import Generator
from bidistill.report import results, table, write_report

NAMES = ("coverage", "popularity", "cold_share", "cold_recall")
SETTINGS = {
    "teacher.dim": 6, "student.dim": 2, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 1,
    "eval.ks": (5, 10), "train.monitor": "ndcg@10", "run.progress": False, "distill.pool": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(50, 60, 1000, dim=4, seed=5)[0], "ratio", val=0.2, test=0.2, seed=1)


def by_hand():
    """Five items; items 3 and 4 have 1 of 10 training interactions each, item 2 has 2."""
    catalog = Catalog(np.array([4, 2, 2, 1, 1]), held_items=np.array([3, 0, 4, 3]))
    first = Lists(np.array([[0, 1, 3], [0, 4, -1]]), np.array([3, 0]), np.array([2, 1]))
    second = Lists(np.array([[1, 0, 2], [-1, -1, -1]]), np.array([4, 3]), np.array([3, 9]))
    return catalog, (first, second)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # Lists of 1: 0, 0, 1. Of 2: 0 1, 0 4, 1 0. Of 3: 0 1 3, 0 4, 1 0 2. The last user has nothing left.
        ("coverage", (2 / 5, 3 / 5, 5 / 5)),
        ("popularity", ((4 + 4 + 2) / 3, (3 + 2.5 + 3) / 3, (7 / 3 + 2.5 + 8 / 3) / 3)),
        ("cold_share", (0, (0 + 1 / 2 + 0) / 3, (1 / 3 + 1 / 2 + 0) / 3)),
        ("cold_recall", (0, 1 / 3, 2 / 3)),  # cold ones are held out three times, at the ranks 2, 3 and 9
    ],
)
def test_by_hand(name, values):
    catalog, batches = by_hand()
    assert catalog.cold.tolist() == [False, False, False, True, True]
    metrics = made([name, name], catalog, (1, 2, 3))
    assert list(metrics) == [f"{name}@{k}" for k in (1, 2, 3)]
    for k, metric in metrics.values():
        for batch in batches:
            metric.add(batch.first(k))
    assert [metric.value() for _, metric in metrics.values()] == pytest.approx(values)


@pytest.mark.parametrize(
    ("counts", "cold"),
    [
        ([8, 1, 1], [0, 1, 1]),  # a fifth together
        ([7, 1, 1], [0, 0, 0]),  # more than a fifth: none of two equal ones
        ([9, 1, 0], [0, 1, 1]),
        ([1, 1, 0], [0, 0, 1]),
        ([1, 1], [0, 0]),
    ],
)
def test_equal_items_are_cold_together(counts, cold):
    assert Catalog(np.array(counts), np.array([0])).cold.tolist() == [bool(each) for each in cold]


def counted(model, parts, part, k):
    """All four, user by user, from sorted rows of scores."""
    counts = np.bincount(parts.train_items, minlength=parts.n_items)
    order = np.sort(counts)
    most = max((c for c in {*counts.tolist()} if order[order <= c].sum() <= 0.2 * counts.sum()), default=-1)
    cold = counts <= most
    scores = (model.user_factors @ model.item_factors.T).numpy()
    users, items = parts.part(part)
    listed, popularity, share, hits, held = set(), [], [], 0, 0
    for user in np.unique(users):
        has = set(parts.train_items[parts.train_users == user])
        if part == "test":
            has |= set(parts.val_items[parts.val_users == user])
        row = [item for item in np.lexsort((np.arange(parts.n_items), -scores[user])) if item not in has]
        best = row[:k]
        listed |= set(best)
        popularity.append(counts[best].mean())
        share.append(cold[best].mean())
        own = [item for item in items[users == user] if cold[item]]
        held += len(own)
        hits += len(set(own) & set(best))
    return len(listed) / parts.n_items, np.mean(popularity), np.mean(share), hits / held


@pytest.mark.parametrize("part", ["val", "test"])
def test_as_counted_user_by_user(part, parts):
    rng = np.random.default_rng(3)
    tables = [torch.from_numpy(rng.integers(-2, 3, (n, 3)).astype(np.float32)) for n in (50, 60)]  # with ties
    model = Generator(*tables)
    found = evaluate(model, parts, part, (5, 10), 7, metrics=NAMES)
    for k in (5, 10):
        values = counted(model, parts, part, k)
        assert [found[f"{name}@{k}"] for name in NAMES] == pytest.approx(values)
    assert found == evaluate(
        model, parts, part, (5, 10), 50, metrics=NAMES[::-1]
    )  # in batches of any size, in any order
    plain = evaluate(model, parts, part, (5, 10))
    assert {name: found[name] for name in plain} == plain and not any("coverage" in name for name in plain)
    pair = compare(model, model, parts, part, ks=(10,), metrics=("coverage",))
    assert pair.teacher_catalog == pair.student_catalog == {"coverage@10": found["coverage@10"]}
    some = evaluate(model, parts, part, (5,), max_users=9, metrics=("coverage",))
    assert some["coverage@5"] <= 9 * 5 / 60


def test_popularity_is_the_most_popular_and_covers_little(parts):
    counts = torch.bincount(torch.from_numpy(parts.train_items), minlength=60).float()[:, None]
    popular = evaluate(Generator(torch.ones(50, 1), counts), parts, "test", (5,), metrics=NAMES)
    chance = Generator(torch.randn(50, 8), torch.randn(60, 8))
    other = evaluate(chance, parts, "test", (5,), metrics=NAMES)
    assert popular["popularity@5"] > other["popularity@5"] and popular["coverage@5"] < other["coverage@5"]
    assert popular["cold_share@5"] == popular["cold_recall@5"] == 0 < other["cold_share@5"]


def test_through_a_run_its_tables_and_evaluate(parts, tmp_path, capsys):
    settings = Config().with_overrides(
        SETTINGS | {"run.out": str(tmp_path), "eval.metrics": ["coverage", "cold_recall"]}
    )
    result = Trainer(settings, parts).fit()
    values = result.metrics["student"]["test"]
    assert {"coverage@5", "coverage@10", "cold_recall@5", "cold_recall@10"} <= set(values)
    assert set(result.baselines["popularity"]["test"]) == set(values)
    assert result.history[-1]["student/coverage@10"] > 0
    run = open_run(tmp_path)
    assert run.config.eval.metrics == ("coverage", "cold_recall")
    found = results(run)
    line = found.line("student", "coverage@10")
    assert line.values[-1] == values["coverage@10"] and line.change == line.values[1] - line.values[0]
    text = table(found)
    assert max(map(len, text.splitlines())) <= 80
    shown = next(each for each in text.splitlines() if each.startswith("  Covera.@10"))
    assert "±" not in shown and f"{line.values[0]:.3f}" in text
    page = write_report(run).read_text()
    assert "Coverage@10</th>" in page and "nan" not in page
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert told["student"]["coverage@10"] == values["coverage@10"]
    assert told["baselines"]["popularity"]["cold_recall@5"] == result.baselines["popularity"]["test"]["cold_recall@5"]
    assert "coverage@10" not in told["intervals"]["student"] and "ndcg@10" in told["intervals"]["student"]
    assert main(["evaluate", str(tmp_path), "--json", "--metrics", "popularity,cold_share", "--ks", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["teacher"]["popularity@3"] > 1 and 0 <= told["teacher"]["cold_share@3"] <= 1
    assert "baselines" not in told and "coverage@3" not in told["teacher"]  # they were not evaluated by these
    assert main(["evaluate", str(tmp_path), "--metrics", "none"]) == 0
    assert "Coverage" not in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path), "--metrics", "covrage"]) == 2
    assert "eval.metrics must be some of coverage, popularity, cold_share, cold_recall" in capsys.readouterr().err


def test_what_cannot_be_is_refused_at_once(parts):
    with pytest.raises(UserError, match="eval.metrics must be some of coverage"):
        Config().with_overrides({"eval.metrics": ["diversity"]})
    with pytest.raises(UserError, match="train.monitor is 'coverage@10', but eval.ks gives only: hr@10"):
        Config().with_overrides({"eval.metrics": ["coverage"], "train.monitor": "coverage@10"})
    even = {"train": (np.arange(4), np.arange(4)), "val": (np.arange(4), np.array([1, 2, 3, 0])), "test": ([], [])}
    none = Split.of(
        {name: (np.asarray(users, np.int64), np.asarray(items, np.int64)) for name, (users, items) in even.items()},
        np.arange(4),
        np.arange(4),
    )
    settings = Config().with_overrides(
        SETTINGS | {"eval.ks": (1,), "train.monitor": "mrr", "eval.metrics": ["cold_recall"]}
    )
    with pytest.raises(UserError, match="eval.metrics has cold_recall, but none of the held-out"):
        Trainer(settings.with_overrides({"distill.pool": 1, "train.negatives": 1}), none)


def test_one_of_a_program_of_its_own(parts, outside):
    outside("gini")
    settings = Config().with_overrides(SETTINGS | {"eval.metrics": ("gini",)})
    found = Trainer(settings, parts).fit()
    assert 0 < found.metrics["teacher"]["test"]["gini@5"] < found.baselines["popularity"]["test"]["gini@5"] < 1
