"""The table of results and report.html, from a real run and its control."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from bidistill import Config, Trainer, UserError, compare, generate, split
from bidistill.report import CONTROL, DISTILLED, SEPARATE, metrics_by_run, open_run, table, write_report
from bidistill.report.figures import Curve, learning_curve, rank_density, wins_by_popularity
from bidistill.report.svg import INK

VOID = {"meta", "br", "link", "img", "hr", "input"}
SETTINGS = {
    "teacher.dim": 8,
    "student.dim": 2,
    "teacher.lr": 0.02,
    "student.lr": 0.02,
    "train.warmup_epochs": 3,
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
    Trainer(config, parts).fit()
    alone = config.with_overrides({"distill.method": "none", "run.out": str(folder / "control")})
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


def metrics(value: float, **more: float) -> dict:
    one = (
        {f"{name}@{k}": value for k in (10, 50) for name in ("hr", "ndcg", "recall", "precision")}
        | {"mrr": value}
        | more
    )
    return {model: {"val": one, "test": one} for model in ("teacher", "student")}


# The table


def test_table_has_a_line_for_each_training_of_each_model():
    text = table({SEPARATE: metrics(0.1), CONTROL: metrics(0.2), DISTILLED: metrics(0.25, mrr=0.15)})
    lines = text.splitlines()
    assert lines[0].split() == ["HR@10", "NDCG@10", "Recall@10", "HR@50", "NDCG@50", "Recall@50", "MRR"]
    for first, model in ((1, "teacher"), (6, "student")):
        assert lines[first] == model
        labels = [line.strip() for line in lines[first + 1 : first + 5]]
        for line, label in zip(labels, [SEPARATE, CONTROL, DISTILLED, "change by distillation"], strict=True):
            assert line.startswith(label)
    assert lines[4].split()[-7:] == ["0.2500*"] * 6 + ["0.1500"]
    assert lines[3].split()[-7:] == ["0.2000"] * 6 + ["0.2000*"]
    assert lines[5].split()[-7:] == ["+25.0%"] * 6 + ["-25.0%"]
    assert "test part" in lines[-1]


def test_columns_stand_below_their_headings():
    lines = table({SEPARATE: metrics(0.1), DISTILLED: metrics(0.2)}, ks=(10, 50)).splitlines()
    ends = [match.end() for match in re.finditer(r"\S+", lines[0])]
    for line in (lines[2], lines[3]):
        values = [match.end() for match in re.finditer(r"\d\.\d{4}", line)]
        assert len(values) == 7
        assert max(abs(a - b) for a, b in zip(ends, values, strict=True)) <= 1


def test_table_of_equal_or_single_rows_marks_none_as_best():
    for rows in ({SEPARATE: metrics(0.1)}, {SEPARATE: metrics(0.1), CONTROL: metrics(0.1)}):
        lines = table(rows).splitlines()
        assert "*" not in "".join(lines[:-1])
        assert "change" not in "".join(lines)


def test_change_from_zero_is_no_number():
    lines = table({CONTROL: metrics(0.0), DISTILLED: metrics(0.1)}).splitlines()
    assert lines[4].split()[-7:] == ["-"] * 7


def test_table_compares_with_the_warmup_only_where_there_is_no_control():
    assert "change, without a control" in table({SEPARATE: metrics(0.1), DISTILLED: metrics(0.1)})


def test_table_names_a_part_or_k_that_is_missing():
    only_val = {model: {"val": found["val"]} for model, found in metrics(0.1).items()}
    with pytest.raises(UserError, match="no metrics on the part 'test': choose one of val"):
        table({SEPARATE: only_val})
    assert "validation part" in table({SEPARATE: only_val}, part="val")
    with pytest.raises(UserError, match=r"lack hr@7.*eval\.ks"):
        table({SEPARATE: metrics(0.1)}, ks=(7,))


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
    for name in ("teacher", "student"):
        for value in json.loads((finished / "metrics.json").read_text())["metrics"][name]["test"].items():
            if not value[0].startswith(("precision", "users")):
                assert f"{value[1]:.4f}" in page.cells
    assert "train.warmup_epochs" in page.cells  # a setting that is not the default
    assert open_run(finished).split.fingerprint() in page.cells
    assert not list(finished.glob(".*"))  # no temporary file is left


def test_summary_tells_the_gain_against_the_control(finished, report):
    before, after = (
        json.loads((folder / "metrics.json").read_text())["metrics"]["student"]["test"]["ndcg@5"]
        for folder in (finished / "control", finished)
    )
    assert f"the student&#39;s from {before:.4f} to {after:.4f}" in report
    assert "the same extra epochs without distillation" in report


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
    assert list(metrics_by_run(open_run(run, tmp_path / "elsewhere"))) == [SEPARATE, CONTROL, DISTILLED]


def test_a_run_without_distillation_has_a_report_too(run):
    text = write_report(run / "control").read_text()
    assert "did not learn from each other" in text and DISTILLED not in text


def test_control_that_does_not_match_is_left_out_with_the_reason_or_refused(run, tmp_path):
    path = run / "control" / "config.toml"
    Config.from_toml(path).with_overrides({"train.epochs": 9}).to_toml(path)
    found = open_run(run)
    assert found.control is None
    assert "train.epochs = 9" in found.remark
    assert "train.epochs = 9" in write_report(run).read_text()
    with pytest.raises(UserError, match=r"no control of .*train\.epochs = 9"):
        write_report(run, run / "control")
    with pytest.raises(UserError, match="trained with distillation"):
        write_report(run, run)


def test_control_of_another_warmup_does_not_match(run):
    path = run / "control" / "metrics.json"
    values = json.loads(path.read_text())
    values["warmup"]["student"]["test"]["mrr"] += 0.1
    path.write_text(json.dumps(values))
    assert "another warm-up" in open_run(run).remark


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.toml").unlink(), "no run folder"),
        (lambda run: (run / "metrics.json").unlink(), "not finished"),
        (lambda run: (run / "metrics.json").write_text("{"), r"cannot read .*metrics\.json"),
        (lambda run: (run / "metrics.json").write_text("[]"), "damaged"),
        (lambda run: (run / "metrics.csv").unlink(), r"cannot read .*metrics\.csv"),
        (lambda run: (run / "metrics.csv").write_text("phase,epoch\njoint,x\n"), r"cannot read .*metrics\.csv"),
        (lambda run: (run / "metrics.csv").write_text("phase,epoch,seconds\n"), "has no values of teacher/ndcg@5"),
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
