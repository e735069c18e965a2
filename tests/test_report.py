"""The table of results and report.html, from a real run and its control."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from bidistill import Config, Trainer, UserError, compare, generate, matched, split
from bidistill.evaluation.evaluate import Comparison
from bidistill.files.records import read_record, write_record
from bidistill.report import CONTROL, DISTILLED, SEPARATE, open_run, results, table, write_report
from bidistill.report.comparison import tabulated
from bidistill.report.figures import Curve, learning_curve, rank_density, wins_by_popularity
from bidistill.report.svg import INK
from bidistill.runs.records import Finished
from bidistill.training.phases import Epochs

VOID = {"meta", "br", "link", "img", "hr", "input"}
SETTINGS = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.pretrain_epochs": 3,
    "train.epochs": 2,
    "train.monitor": "ndcg@5",
    "eval.ks": (5, 20),
    "run.progress": False,
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run with its control in RUN/control."""
    folder = tmp_path_factory.mktemp("report") / "my <run>"
    parts = split(generate(60, 80, 1200, dim=4, seed=3)[0], "leave_one")
    config = Config().with_overrides(SETTINGS | {"run.out": str(folder)})
    trainer = Trainer(config, parts)
    trainer.fit()
    alone = matched(trainer).with_overrides({"run.out": str(folder / "control")})
    Trainer(alone, parts, warm_start=folder).fit()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "my <run>", ignore=shutil.ignore_patterns("report.html"))


@pytest.fixture(scope="session")
def report(finished):
    """The report of the finished run."""
    return write_report(finished).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags are balanced; collects the texts of cells and headings, and what the page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.labels: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        self.labels += [given.get("aria-label", "")] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if set(self.open) & {"td", "th"}:
            self.cells.append(data)


def ranked(teacher, student, users=None):
    """Ranks of one held-out item each of some users."""
    teacher, student = np.array(teacher), np.array(student)
    return Comparison(np.arange(len(teacher)) if users is None else users, np.zeros_like(teacher), teacher, student)


def three(n=40):
    """Users of whom the distilled teacher finds 3 of 4, its control 2, the separate one 1; the student is always the same."""
    at = np.arange(n) % 4
    return {
        label: ranked(np.where(at < found, 1, 99), np.full(n, 2))
        for found, label in ((1, SEPARATE), (2, CONTROL), (3, DISTILLED))
    }


EPOCHS = {"teacher": [Epochs(30, 20), Epochs(19, 18), Epochs(19, 0)], "student": [None, Epochs(19, 7), Epochs(19, 9)]}


# The table


def test_table_names_users_intervals_changes_and_epochs():
    lines = table(tabulated(three(), "test", 1447, (10, 50), EPOCHS, ["mind this"])).splitlines()
    assert lines[0] == "test part: 40 users, ranked among the full catalog of 1,447 items"
    assert "95 % interval over users" in lines[1] and "paired by user" in lines[1]
    assert lines[3].split() == ["teacher", "separate", "control", "distilled", "change", "by", "distillation"]
    hr = lines[4].split()
    assert hr[:8] == ["HR@10", "0.25", hr[2], "0.50", hr[4], "0.75", hr[6], "+0.25"] and hr[8:] == [hr[8], "+50%"]
    assert [float(text[1:]) for text in (hr[2], hr[4], hr[6], hr[8])] == pytest.approx(
        [0.13, 0.15, 0.13, 0.13], abs=0.02
    )
    assert [line.split()[0] for line in lines[4:13]] == [
        "HR@10",
        "NDCG@10",
        "Recall@10",
        "Precis.@10",
        "HR@50",
        "NDCG@50",
        "Recall@50",
        "Precis.@50",
        "MRR",
    ]
    assert lines[13].split() == ["epochs", "30", "19", "19"]
    assert lines[14].split() == ["epoch", "kept", "20", "18", "0", "(pretrained)"]
    assert lines[16].split()[0] == "student" and lines[17].split()[-1] == "none"
    assert lines[26].split() == ["epochs", "-", "19", "19"]
    for label in (SEPARATE, CONTROL, DISTILLED):
        assert label in table(tabulated(three(), "test", 1447, (10, 50)))
    assert lines[-1] == "note: mind this"


def test_change_is_paired_by_user():
    """Two models that differ by the same little for every user: each mean is uncertain, the difference is not."""
    ranks = np.arange(200) % 20 + 1
    found = tabulated({CONTROL: ranked(ranks + 1, ranks), DISTILLED: ranked(ranks, ranks)}, "test", 99, (10,))
    line = found.line("teacher", "hr@10")
    assert line.ends[0].half > 0.05 and line.change_ends.half < 0.035
    assert line.change == pytest.approx(0.05)
    assert line.change_ends.low < 0.05 < line.change_ends.high


@pytest.mark.parametrize("n", [1, 2, 3000])
def test_no_line_is_wider_than_a_terminal(n):
    note = "teacher, joint phase: epoch 0 is kept, the state after the pretraining: no later epoch of 19 was better on validation"
    for labels in ([SEPARATE], [SEPARATE, CONTROL], [SEPARATE, DISTILLED], [SEPARATE, CONTROL, DISTILLED]):
        compared = {label: each for label, each in three(n).items() if label in labels}
        text = table(tabulated(compared, "val", 10**9, (10, 100), None, [note, note]))
        assert max(map(len, text.splitlines())) <= 80
        assert ("\u00b1" in text.partition("teacher")[2]) == (n > 1)  # one user tells nothing about others
        assert "validation part" in text


def test_change_from_zero_has_no_share():
    nobody = {CONTROL: ranked([99, 99, 99], [1, 1, 1]), DISTILLED: ranked([1, 99, 99], [1, 1, 1])}
    assert tabulated(nobody, "test", 99, (10,)).line("teacher", "hr@10").changed.endswith(" -")


def test_table_compares_with_pretraining_only_where_there_is_no_control():
    compared = {label: each for label, each in three().items() if label != CONTROL}
    assert "change, without a control" in table(tabulated(compared, "test", 99, (10,)))
    assert "change" not in table(tabulated({SEPARATE: three()[SEPARATE]}, "test", 99, (10,)))


def test_models_of_other_users_are_not_compared():
    other = {CONTROL: ranked([1, 2], [1, 2]), DISTILLED: ranked([1, 2], [1, 2], np.array([0, 2]))}
    with pytest.raises(UserError, match=r"not evaluated on the same users: .*eval\.users"):
        tabulated(other, "test", 99, (10,))


# The report


def test_report_is_one_file_with_all_it_promises(finished, report):
    assert (finished / "report.html").read_text(encoding="utf-8") == report
    assert len(report.encode()) < 1_000_000
    page = Page(report)
    assert [target for target in page.loads if not target.startswith(("#", "data:"))] == []  # nothing from outside
    assert len(page.labels) == 4 and all(len(label) > 40 for label in page.labels)
    assert "my &lt;run&gt;" in report and "<run>" not in report
    for label in (SEPARATE, CONTROL, DISTILLED, "change by distillation"):
        assert page.cells.count(label) == 2
    found = results(open_run(finished))
    kept = json.loads((finished / "metrics.json").read_text())["metrics"]
    for name, lines in found.models.items():
        for line in lines:
            assert {*line.cells, line.changed} <= {*page.cells}
            assert line.values[-1] == pytest.approx(kept[name]["test"][line.metric], rel=1e-12)
    assert page.cells.count("epochs trained") == page.cells.count("epoch kept") == 2
    assert f"{found.users:,} users" in report and found.users == 60
    assert "train.pretrain_epochs" in page.cells  # a setting that is not the default
    assert open_run(finished).split.fingerprint() in page.cells
    assert not list(finished.glob(".*"))  # no temporary file is left


def test_summary_tells_the_gain_against_the_control(finished, report):
    line = results(open_run(finished)).line("student", "ndcg@5")
    assert f"the student&#39;s by {line.changed} to {line.cells[-1]}" in report
    assert "the same 2 extra epochs without distillation" in report
    assert "They do not cover the seed" in report


def test_share_of_wins_is_that_of_the_ranks(finished, report):
    found = open_run(finished)
    result = compare(found.model("teacher"), found.model("student"), found.split, "test")
    assert f"The student ranks {np.mean(result.student_ranks < result.teacher_ranks):.1%} of" in report


def test_svg_ids_are_unique_and_every_reference_resolves(report):
    ids = re.findall(r'\bid="([^"]+)"', report)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', report)) <= set(ids)


def test_report_is_the_same_bytes_again(finished, report):
    assert write_report(finished).read_text(encoding="utf-8") == report


def test_report_without_control_says_so(run):
    shutil.rmtree(run / "control")
    text = write_report(run).read_text()
    assert "There is no control here" in text and CONTROL not in text


def test_control_from_another_folder(run, tmp_path):
    shutil.move(run / "control", tmp_path / "elsewhere")
    assert CONTROL in write_report(run, tmp_path / "elsewhere").read_text()
    assert results(open_run(run, tmp_path / "elsewhere")).labels == [SEPARATE, CONTROL, DISTILLED]


def test_a_run_without_distillation_has_a_report_too(run):
    text = write_report(run / "control").read_text()
    assert "did not learn from each other" in text and DISTILLED not in text


def change(path, alter):
    """Write a record of a run again, sealed, with what `alter` changes in it."""
    record = read_record(path, Finished)
    alter(record)
    write_record(path, record)


def test_control_that_does_not_match_is_left_out_with_the_reason_or_refused(run, tmp_path):
    path = run / "control" / "metrics.json"
    whole = path.read_bytes()
    change(path, lambda record: record.history.append(record.history[-1] | {"epoch": 3}))
    found = open_run(run)
    assert found.control is None
    assert "its joint phase had 3 epochs, that of the run 2" in found.remark
    assert "had 3 epochs" in write_report(run).read_text() and "had 3 epochs" in table(results(found)).replace(
        "\n  ", " "
    )
    with pytest.raises(UserError, match=r"no control of .*had 3 epochs"):
        write_report(run, run / "control")
    path.write_bytes(whole)
    (run / "control" / "config.toml").unlink()
    change(path, lambda record: record.config.update({"train.negatives": 9}))
    assert "train.negatives = 9" in open_run(run).remark
    with pytest.raises(UserError, match="trained with distillation"):
        write_report(run, run)


def test_control_of_another_pretraining_does_not_match(run):
    change(run / "control" / "metrics.json", lambda r: r.pretrained["student"]["test"].update(mrr=0.9))
    assert "another pretraining" in open_run(run).remark


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: [(run / name).unlink() for name in ("config.toml", "metrics.json")], "no run folder"),
        (lambda run: (run / "metrics.json").unlink(), "not finished"),
        (lambda run: (run / "metrics.json").write_text("{"), r"metrics\.json is damaged"),
        (lambda run: (run / "metrics.json").write_text("[]"), "damaged"),
        (lambda run: change(run / "metrics.json", lambda r: r.history.clear()), "has no values of teacher/ndcg@5"),
        (lambda run: (run / "student.safetensors").write_bytes(b"x"), r"student\.safetensors"),
        (lambda run: (run / "split.npz").unlink(), r"split\.npz"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_sentence(run, spoil, message):
    spoil(run)
    with pytest.raises(UserError, match=message) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_models_of_another_split_are_refused(run):
    other = split(generate(60, 80, 1200, dim=4, seed=4)[0], "leave_one")
    other.save(run / "split.npz")
    with pytest.raises(UserError, match="another split"):
        write_report(run)


# The pictures, from odd numbers


def parsed(svg: str) -> ElementTree.Element:
    """The picture as XML; every text and line of it follows the page's colour."""
    assert INK not in svg and "currentColor" in svg
    assert not re.search(r"(fill|stroke): ?#000000", svg)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label") and "width" not in root.attrib
    return root


@pytest.mark.parametrize(
    ("teacher", "student", "share"),
    [([1], [1], "0.0%"), ([2], [1], "100.0%"), ([1, 5, 10**7], [3, 4, 1], "66.7%"), ([7] * 500, [7] * 500, "0.0%")],
)
def test_pictures_of_odd_ranks(teacher, student, share):
    teacher, student = np.array(teacher), np.array(student)
    assert f"student ranks {share}" in parsed(rank_density(teacher, student)).get("aria-label")
    assert f"{float(share[:-1]):.0f}%" in parsed(wins_by_popularity(np.full(len(teacher), 3), teacher, student)).get(
        "aria-label"
    )


def test_wins_are_grouped_by_popularity():
    popularity = np.arange(100)
    label = parsed(wins_by_popularity(popularity, np.full(100, 5), np.where(popularity < 20, 1, 9))).get("aria-label")
    assert re.findall(r"(\d+–\d+) training interactions (\d+%)", label) == [  # noqa: RUF001
        ("0–19", "100%"), ("20–39", "0%"), ("40–59", "0%"), ("60–79", "0%"), ("80–99", "0%"),  # noqa: RUF001
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0, 0.0], [0.1, 0.3, 0.2]])
def test_learning_curve_of_any_length(values):
    curve = Curve("distilled", list(range(len(values))), values)
    label = parsed(learning_curve("student", [curve], "recall@20")).get("aria-label")
    assert (
        f"Recall@20 of the student on validation by epoch. Best values: bidirectional distillation {max(values):.4f}"
        in label
    )
