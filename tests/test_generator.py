"""The model that made data up: in a file beside them, a row of every table, and the ceiling of what any model reaches."""

import json

import numpy as np
import pytest
import torch
from bidistill import Config, Split, Trainer, UserError, evaluate, generate, matched, open_run, split
from bidistill.cli import main
from bidistill.data.generator import GeneratorSize, generator_size, path_beside, read_generator, write_generator
from bidistill.data.load import load_split
from bidistill.files.records import read_record
from bidistill.models.generator import Generator
from bidistill.report import results, table, write_report
from bidistill.runs.records import Finished
from runs import StopAt

pytestmark = pytest.mark.usefixtures("heard_signals")

SETTINGS = {
    "teacher.dim": 6, "student.dim": 2, "train.batch_size": 256, "train.pretrain_epochs": 1, "train.epochs": 1,
    "eval.ks": (5, 10), "train.monitor": "ndcg@10", "run.progress": False, "distill.pool": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of data that the command made, with the generator's beside it. Some of the 90 items met no user."""
    path = tmp_path_factory.mktemp("made") / "made.csv"
    sizes = ["--users", "50", "--items", "90", "--interactions", "900", "--dim", "4", "--zipf", "2"]
    assert main(["data", "generate", *sizes, "--out", str(path)]) == 0
    return path


def config(made, folder=None, **overrides):
    given = {"data.path": str(made), "eval.generator": str(path_beside(made))}
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return Config().with_overrides(SETTINGS | given | {"run.out": None if folder is None else str(folder)} | named)


def test_the_file_beside_has_what_the_function_gives(made, capsys):
    _, users, items = generate(50, 90, 900, dim=4, zipf=2.0)
    path = path_beside(made)
    assert path.name == "made.generator.safetensors"
    assert generator_size(path) == GeneratorSize(50, 90, 5)
    parts = load_split(config(made).data)
    assert parts.n_items < 90  # so that rows have other numbers than ids
    model = read_generator(path, parts)
    assert torch.equal(model.user_factors, torch.from_numpy(users[parts.user_ids]))
    assert torch.equal(model.item_factors, torch.from_numpy(items[parts.item_ids]))
    some = torch.tensor([0, 7]), torch.tensor([[1, 2], [3, 4]])
    scores = (users @ items.T)[parts.user_ids[some[0]][:, None], parts.item_ids[some[1]]]
    assert model.score(*some).numpy() == pytest.approx(scores, rel=1e-5, abs=1e-5)
    half = read_generator(path, parts, users=range(3, 5), items=range(0))
    assert torch.equal(half.user_factors, model.user_factors[3:5])
    assert (len(half.item_factors), half.n_users, half.n_items) == (0, 50, parts.n_items)
    told = main(
        [
            "data",
            "generate",
            "--users",
            "9",
            "--items",
            "20",
            "--interactions",
            "50",
            "--out",
            str(made.parent / "b.csv"),
        ]
    )
    assert told == 0 and "--eval-generator" in capsys.readouterr().out


def test_its_row_is_what_it_reaches(made, tmp_path, capsys):
    settings = config(made, tmp_path / "run", eval__baselines=("ease",))
    parts = load_split(settings.data)
    result = Trainer(settings, parts).fit()
    assert list(result.baselines) == ["popularity", "ease", "generator"]
    model = read_generator(settings.eval.generator, parts)
    for part in ("val", "test"):
        assert result.baselines["generator"][part] == evaluate(model, parts, part, (5, 10))
    assert read_record(tmp_path / "run" / "metrics.json", Finished).baselines == result.baselines
    run = open_run(tmp_path / "run")
    found = results(run)
    values = {name: each["test"]["ndcg@10"] for name, each in (result.metrics | result.baselines).items()}
    own = values.pop("generator")
    told = "; ".join(f"{name}: {values[name] / own:.1%}" for name in ("teacher", "student", "popularity", "ease"))
    note = f"NDCG@10 on the test part as a share of the generating model's own ({own:.4f}): {told}"
    assert note in found.notes and note in write_report(run).read_text().replace("&#39;", "'")
    assert note in " ".join(table(found).split())
    assert not [each for each in found.notes if "below" in each and "generator" in each]  # nobody can be above it
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--ks", "5", "--json"]) == 0
    shares = json.loads(capsys.readouterr().out)["share_of_generator"]
    assert set(shares) == {"teacher", "student", "popularity", "ease"}
    mrr = {name: each["test"]["mrr"] for name, each in (result.metrics | result.baselines).items()}
    assert shares["ease"]["mrr"] == mrr["ease"] / mrr["generator"]
    assert set(shares["student"]) == {"hr@5", "ndcg@5", "recall@5", "precision@5", "mrr"}
    assert main(["evaluate", str(tmp_path / "run"), "--ks", "10"]) == 0
    assert note in " ".join(capsys.readouterr().out.split())


def test_without_it_nothing_is_said(made, tmp_path, capsys):
    settings = config(made, tmp_path / "run", eval__generator=None)
    Trainer(settings, load_split(settings.data)).fit()
    assert not [note for note in results(open_run(tmp_path / "run")).notes if "generating" in note]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert "share_of_generator" not in json.loads(capsys.readouterr().out)


def test_a_resumed_run_may_ask_for_it_and_a_control_does_not(made, tmp_path):
    settings = config(made, tmp_path, eval__generator=None)
    with pytest.raises(KeyboardInterrupt):
        Trainer(settings, load_split(settings.data), callbacks=[StopAt(0, 1)]).fit()
    trainer = Trainer.resume(tmp_path, config=config(made, tmp_path))
    assert "generator" in trainer.fit().baselines
    control = matched(trainer).with_overrides({"run.out": str(tmp_path / "control")})
    assert control.eval.generator is None
    assert list(Trainer(control, trainer.split, warm_start=tmp_path).fit().baselines) == ["popularity"]
    assert open_run(tmp_path).control is not None


def test_what_is_no_generator_of_the_data_is_refused_at_once(made, tmp_path):
    parts = load_split(config(made).data)

    def refused(path, split=parts):
        with pytest.raises(UserError) as caught:
            Trainer(config(made, eval__generator=str(path)), split)
        return str(caught.value)

    assert f"{tmp_path / 'none'}: there is no such file" in refused(tmp_path / "none")
    (tmp_path / "text").write_text("user,item")
    assert "is damaged" in refused(tmp_path / "text")
    whole = path_beside(made).read_bytes()
    (tmp_path / "bitten").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged (its checksum" in refused(tmp_path / "bitten")
    run = tmp_path / "run"
    Trainer(config(made, run, eval__generator=None), parts).fit()
    assert "is no generator (its format is" in refused(run / "student.safetensors")
    few = tmp_path / "few"
    write_generator(few, np.ones((50, 2), np.float32), np.ones((60, 2), np.float32))
    last = next(each for each in parts.item_ids.tolist() if each >= 60)
    assert f"{few} has the 60 items 0 to 59, but the data have {last}: give the file that" in refused(few)
    named = Split.of(
        {name: parts.part(name) for name in ("train", "val", "test")},
        np.array([f"u{each}" for each in parts.user_ids], dtype=object),
        parts.item_ids,
    )
    assert "has the 50 users 0 to 49, but the data have 'u0'" in refused(path_beside(made), named)


def test_a_plan_counts_it(made, capsys):
    def largest(*more):
        line = ["plan", "--users", "50", "--items", "90", "--interactions", "900", "--json", *more]
        assert main(line) == 0
        memory = json.loads(capsys.readouterr().out)["memory"]
        return next(size for name, size in memory.items() if name == "the largest of the baselines")

    assert largest() == 4 * 90
    assert largest("--eval-generator", str(path_beside(made))) == 4 * 5 * (50 + 90) + 4 * 5 * 90


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The default settings, but for fewer epochs, on data of the default tastes."""
    folder = tmp_path_factory.mktemp("default")
    made, users, items = generate(800, 400, 28_000, seed=1)
    write_generator(folder / "generator", users, items)
    settings: dict[str, object] = {
        "train.pretrain_epochs": 25,
        "train.epochs": 3,
        "run.progress": False,
        "run.threads": 2,
    }
    settings |= {"run.out": str(folder / "run"), "eval.generator": str(folder / "generator")}
    return Trainer(Config().with_overrides(settings | {"eval.baselines": ("popularity", "ease")}), split(made)).fit()


def test_on_made_data_tastes_matter(default_run):
    """Popularity < the default student < the teacher < the ceiling, with gaps that no seed closes."""
    found = {name: each["test"]["ndcg@50"] for name, each in (default_run.metrics | default_run.baselines).items()}
    share = {name: value / found["generator"] for name, value in found.items()}
    print({name: f"{value:.3f}" for name, value in share.items()})
    assert share["popularity"] < 0.45
    assert share["ease"] > share["popularity"] + 0.15
    assert share["popularity"] + 0.1 < share["student"] < 0.9
    assert share["popularity"] + 0.15 < share["teacher"] < 0.9


def test_without_tastes_popularity_is_the_ceiling():
    made, users, items = generate(800, 400, 28_000, seed=1, tastes=0.0)
    parts = split(made)
    model = Generator(torch.from_numpy(users), torch.from_numpy(items))
    counts = np.bincount(parts.train_items, minlength=400).astype(np.float32)[:, None]
    popular = Generator(torch.ones(800, 1), torch.from_numpy(counts))
    own, other = (evaluate(each, parts, "test", (50,))["ndcg@50"] for each in (model, popular))
    assert other == pytest.approx(own, rel=0.05)


def test_als_is_well_above_popularity():
    pytest.importorskip("implicit")
    from bidistill.evaluation.ranks import seen_items
    from bidistill.models.als import ALS

    from bdkernels import Seen

    parts = split(generate(800, 400, 28_000, seed=1)[0])
    train: Seen = seen_items(parts, "val")
    model = ALS(800, 400, 16)
    model.fit(train, 0)
    counts = np.bincount(parts.train_items, minlength=400).astype(np.float32)[:, None]
    popular = Generator(torch.ones(800, 1), torch.from_numpy(counts))
    als, other = (evaluate(each, parts, "test", (50,))["ndcg@50"] for each in (model, popular))
    assert als > 1.4 * other
