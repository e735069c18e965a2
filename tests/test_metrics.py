"""The table of metrics: what is made from it, a metric from outside the package, and that values keep their bits."""

import json
import math

import numpy as np
import pytest
from bidistill import METRICS, Config, Trainer, UserError, evaluate, generate, interval, per_user, split
from bidistill.cli import main
from bidistill.evaluation.ranks import held_out, ranks
from bidistill.metrics import UserRanks, heading, listed, metrics_of, names_of
from bidistill.report import open_run, results, table, write_report

MINE = "average_precision"
SETTINGS = {
    "teacher.dim": 8, "student.dim": 2, "teacher.lr": 0.05, "student.lr": 0.05, "train.batch_size": 256,
    "train.pretrain_epochs": 2, "train.epochs": 2, "eval.ks": (5, 10), "train.monitor": f"{MINE}@10", "run.progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(60, 80, 1200, dim=4, seed=1)[0], "ratio", val=0.2, test=0.2, seed=1)


def of_one_table(users, found, ks):
    """The formulas that METRICS replaced: all metrics of ungrouped interactions at once."""
    unique, group, sizes = np.unique(users, return_inverse=True, return_counts=True)
    best = np.full(len(sizes), np.iinfo(np.int64).max)
    np.minimum.at(best, group, found)
    ideal = np.cumsum(1 / np.log2(np.arange(2, max(max(ks), sizes.max()) + 2)))
    result = {"users": unique}
    for k in ks:
        hit = found <= k
        hits = np.bincount(group, hit, len(sizes))
        gain = np.bincount(group, hit / np.log2(found + 1), len(sizes))
        result |= {f"hr@{k}": (hits > 0).astype(float), f"ndcg@{k}": gain / ideal[np.minimum(sizes, k) - 1]}
        result |= {f"recall@{k}": hits / sizes, f"precision@{k}": hits / k}
    return result | {"mrr": 1 / best}


@pytest.mark.parametrize("n_users", [1, 40, 3000])
def test_values_keep_their_bits(n_users, rng):
    users, found = rng.integers(0, n_users, 20 * n_users), rng.integers(1, 500, 20 * n_users)
    ks = (1, 7, 50, 400)
    wanted, got = of_one_table(users, found, ks), metrics_of(users, found, ks)
    assert list(got) == list(wanted) and names_of(ks) == list(wanted)[1:]
    for name, values in wanted.items():
        assert got[name].tobytes() == values.tobytes(), name


def test_what_a_metric_is_given(rng):
    """User by user, none lost; a user's own ranks."""
    users, found = rng.integers(10, 17, 50), rng.permutation(50) + 1
    unique, held = UserRanks.of(users, found)
    for at, user in enumerate(unique):
        own = found[users == user]
        assert held.ranks[held.starts[at] : held.starts[at + 1]].tolist() == own.tolist()
        assert held.sorted().ranks[held.starts[at] : held.starts[at + 1]].tolist() == sorted(own)
        assert (held.counts[at], held.best()[at], held.sum(held.ranks)[at]) == (len(own), own.min(), own.sum())
    assert held.rows.tolist() == np.repeat(np.arange(len(unique)), held.counts).tolist()


def test_a_metric_from_outside_is_trained_by_reported_and_explained(outside, parts, tmp_path, capsys):
    """One registration: monitor, evaluate, intervals, history, table, report, command line and help know it."""
    with pytest.raises(UserError, match=f"train.monitor is '{MINE}@10', .*; register a metric of your own first"):
        Config().with_overrides(SETTINGS)
    outside(MINE)
    config = Config().with_overrides(SETTINGS | {"run.out": str(tmp_path / "run")})
    result = Trainer(config, parts).fit()

    users, items = held_out(parts, "test")
    found = ranks(result.student, parts, "test")
    wanted = {}
    for user in np.unique(users):
        own = sorted(found[users == user])
        terms = [at / rank for at, rank in enumerate(own, start=1) if rank <= 10]
        wanted[int(user)] = sum(terms) / min(10, len(own))
    assert any(0 < value < 1 for value in wanted.values()) and len(items) > len(wanted)
    of_users = per_user(result.student, parts, "test", (10,))
    assert dict(zip(of_users["users"].tolist(), of_users[f"{MINE}@10"].tolist(), strict=True)) == pytest.approx(wanted)
    mean = evaluate(result.student, parts, "test", (10,))[f"{MINE}@10"]
    assert mean == pytest.approx(np.mean(list(wanted.values()))) == result.metrics["student"]["test"][f"{MINE}@10"]
    low, high = interval(of_users[f"{MINE}@10"])
    assert low < mean < high

    rows = [row for row in result.history if row["phase"] == "joint"]
    column = f"student/{MINE}@10"
    best = max(range(len(rows)), key=lambda at: rows[at][column])
    assert rows[-1]["student/best_epoch"] == rows[best]["epoch"]
    run = open_run(tmp_path / "run")
    line = results(run).line("student", f"{MINE}@10")
    assert line.values[-1] == pytest.approx(mean)
    assert "Averag.@10" in table(results(run)) and max(map(len, table(results(run)).splitlines())) <= 80
    page = write_report(tmp_path / "run").read_text()
    assert ">Average precision@10</th>" in page and "Average precision@10 on validation" in page
    assert main(["evaluate", str(tmp_path / "run"), "--json", "--ks", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["intervals"]["student"][f"{MINE}@3"][0] <= told["student"][f"{MINE}@3"]
    for command in ("train", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert (f"{MINE}@K" if command == "train" else "Average precision at each K") in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda held: np.zeros(len(held.ranks)), r"number for each of 60 users, shape \(60,\), found \(\d+,\)"),
        (lambda held: np.full(60, math.nan), "gives numbers that are not finite"),
    ],
)
@pytest.mark.usefixtures("outside")
def test_a_metric_that_gives_no_number_for_a_user_is_refused(values, words, parts):
    METRICS.register("wrong", values)
    config = Config().with_overrides(SETTINGS | {"train.monitor": "mrr"})
    with pytest.raises(UserError, match=f"the metric 'wrong' .*{words}"):
        Trainer(config, parts).fit()


@pytest.mark.usefixtures("outside")
def test_without_a_cut_off():
    METRICS.register("worst", lambda held: 1 / np.maximum.reduceat(held.ranks, held.starts[:-1]))
    assert names_of((5,))[-2:] == ["mrr", "worst"] and listed().endswith("at each K, and MRR, Worst")
    assert Config().with_overrides({"train.monitor": "worst"}).train.monitor == "worst"
    assert metrics_of(np.array([3, 3]), np.array([2, 8]), (1,))["worst"].tolist() == [1 / 8]


def test_headings():
    names = ("hr@1", "ndcg@10", "recall@5", "mrr", "hit_rate@2")
    assert [heading(name) for name in names] == ["HR@1", "NDCG@10", "Recall@5", "MRR", "Hit rate@2"]
