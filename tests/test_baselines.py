"""What every table of results has beside the models of a run: popularity, and what else `eval.baselines` asks for."""

import json

import numpy as np
import pytest
import torch
from bidistill import Config, Trainer, UserError, generate, open_run, split
from bidistill.cli import main
from bidistill.files.records import read_record
from bidistill.report import results, table, write_report
from bidistill.runs.records import Finished
from bidistill.training.baselines import baselines
from runs import StopAt

from bdkernels import Factors

pytestmark = pytest.mark.usefixtures("heard_signals")

SETTINGS = {
    "teacher.dim": 6, "student.dim": 2, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 1,
    "eval.ks": (5, 10), "train.monitor": "ndcg@10", "run.progress": False, "distill.pool": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(50, 60, 1000, dim=4, seed=5)[0], "leave_one", seed=1)


def config(folder=None, **overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(SETTINGS | {"run.out": None if folder is None else str(folder)} | named)


def popular(parts, part):
    """HR@5 and MRR of the list of popular items, counted user by user."""
    counts = np.bincount(parts.train_items, minlength=parts.n_items)
    hits, reciprocal = [], []
    for user, item in zip(*parts.part(part), strict=True):
        has = set(parts.train_items[parts.train_users == user])
        if part == "test":
            has |= set(parts.val_items[parts.val_users == user])
        listed = [each for each in np.lexsort((np.arange(parts.n_items), -counts)) if each not in has]
        rank = 1 + listed.index(item)
        hits.append(rank <= 5)
        reciprocal.append(1 / rank)
    return np.mean(hits), np.mean(reciprocal)


def test_popularity_is_always_there(parts, tmp_path):
    result = Trainer(config(tmp_path, eval__baselines=("item_knn",)), parts).fit()
    assert list(result.baselines) == ["popularity", "item_knn"]
    for part, found in result.baselines["popularity"].items():
        assert (found["hr@5"], found["mrr"]) == pytest.approx(popular(parts, part))
        assert set(found) == set(result.metrics["teacher"][part])
    assert read_record(tmp_path / "metrics.json", Finished).baselines == result.baselines
    assert open_run(tmp_path).baselines == result.baselines
    alone = Trainer(config(), parts).fit()
    assert list(alone.baselines) == ["popularity"] and alone.metrics == result.metrics


def test_one_with_a_dim_has_that_of_either_model():
    found = baselines(config(eval__baselines=("als", "ease", "als")))
    assert [(name, each.kind) for name, each in found.items()] == [
        ("popularity", "popularity"),
        ("als, d = 6", "als"),
        ("als, d = 2", "als"),
        ("ease", "ease"),
    ]
    assert found["als, d = 2"].dim == 2
    assert list(baselines(config(eval__baselines=("als",), student__dim=6))) == ["popularity", "als, d = 6"]


def test_tables_show_them_and_say_who_is_below(parts, tmp_path, capsys):
    result = Trainer(config(tmp_path, eval__baselines=("ease",)), parts).fit()
    run = open_run(tmp_path)
    found = results(run)
    lines = table(found).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("baselines"))
    assert lines[at].split() == ["baselines", "popularity", "ease"]
    values = [result.baselines[name]["test"]["hr@5"] for name in ("popularity", "ease")]
    assert lines[at + 1].split() == ["HR@5", *(f"{value:.4f}" for value in values)]
    assert max(map(len, lines)) <= 80
    page = write_report(run).read_text()
    assert f"<td>{values[1]:.4f}</td>" in page and '<th scope="col">ease</th>' in page
    metric = {name: each["test"]["ndcg@10"] for name, each in (result.metrics | result.baselines).items()}
    for model in ("teacher", "student"):
        notes = [
            note for note in found.notes if note.startswith(f"the {model}, NDCG@10 {metric[model]:.4f} on the test")
        ]
        below = [f"{name} ({metric[name]:.4f})" for name in ("popularity", "ease") if metric[model] < metric[name]]
        assert below  # after one epoch
        assert [note.partition("is below ")[2] for note in notes] == [", ".join(below)]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--ks", "5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["baselines"]
    assert told["ease"]["hr@5"] == values[1]
    assert set(told["ease"]) == {"hr@5", "ndcg@5", "recall@5", "precision@5", "mrr", "users"}
    for other in (["--ks", "7"], ["--users", "9"]):
        assert main(["evaluate", str(tmp_path), *other]) == 0
        assert "baselines" not in capsys.readouterr().out  # they were not evaluated for these


class Oracle(torch.nn.Module):
    """Knows what is held out, so that nothing is better."""

    def __init__(self, parts):
        super().__init__()
        table = torch.zeros(parts.n_users, parts.n_items)
        for part in ("val", "test"):
            users, items = (torch.from_numpy(each) for each in parts.part(part))
            table[users, items] = 1.0
        self.table = torch.nn.Parameter(table)

    def score(self, users, items):
        return self.table[users].gather(1, items)

    def factors(self, users):
        return Factors(self.table[users], torch.eye(self.table.shape[1]))


def test_who_is_above_is_not_told_to_be_below(parts, tmp_path):
    given = {"teacher": Oracle(parts), "student": Oracle(parts)}
    settings = {"train__pretrain_epochs": 0, "train__epochs": 0, "eval__baselines": ("ease",)}
    Trainer(config(tmp_path, **settings), parts, **given).fit()
    found = results(open_run(tmp_path, **given))
    assert not [note for note in found.notes if "is below" in note]


def test_a_resumed_run_may_ask_for_others(parts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(tmp_path), parts, callbacks=[StopAt(0, 1)]).fit()
    changed = config(tmp_path, eval__baselines=("item_knn", "ease"))
    assert set(Trainer.resume(tmp_path, config=changed).fit().baselines) == {"popularity", "item_knn", "ease"}
    assert open_run(tmp_path).config.eval.baselines == ("item_knn", "ease")


def test_names_are_checked():
    option = "eval.baselines must be some of .*popularity"
    for wrong in (("popular",), (), (3,), "popularity"):
        with pytest.raises(UserError, match=option):
            config(eval__baselines=wrong)
