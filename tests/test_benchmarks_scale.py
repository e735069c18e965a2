"""The programs of `make million` and `make scale` at tiny sizes, and their tables in the README."""

import json
import sys
from pathlib import Path

import pytest

from bdkernels import backends

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")
pytest.importorskip("matplotlib", reason="the report's plots need matplotlib")

from benchmarks import million, report, scale
from benchmarks.report_scale import PHASES


@pytest.fixture(autouse=True)
def _needs_the_cpu_backend():
    if (reason := backends.missing("cpu")) is not None:
        pytest.skip(f"backend cpu: {reason}")


def rendered(folder: Path) -> str:
    readme = folder / "README.md"
    readme.write_text(f"{report.START}{report.END}")
    report.main(["--results", str(folder), "--readme", str(readme)])
    return readme.read_text()


def test_million(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(million, "SIZES", {"million": (300, 200, 6000)})
    monkeypatch.setattr(
        sys, "argv", ["million", "--results", str(tmp_path / "million.json"), "--folder", str(tmp_path / "work")]
    )
    million.main()
    found = json.loads((tmp_path / "million.json").read_text())
    assert [row["size"] for row in found["sizes"]] == ["million"]
    for row in found["sizes"]:
        assert row["train"]["seconds"] > 0 and row["train"]["peak_gb"] > 0.1 and row["plan"]["seconds"] > 0
        assert [each["phase"] for each in row["epochs"] if int(each["epoch"])] == list(PHASES)
        assert not [line for line in row["log"] if str(tmp_path) in line]
        assert row["quality"]["metric"] == "ndcg@50" and 0 < row["quality"]["generator"] < 1
        assert row["quality"]["student_share"] > 0 and row["quality"]["popularity_share"] < 1
    text = rendered(tmp_path)
    assert "| 300 x 200, 6,000 |" in text and "| both together |" in text
    assert "one epoch of each alone and one of both" in text and "| users x items | NDCG@50 of that model |" in text
    assert (tmp_path / "work" / "million.csv").exists()  # the folder that was asked for keeps all


def test_a_command_that_fails_is_shown(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)bidistill train failed:.*nothing to train on"):
        million.command(["train"], tmp_path / "log")


def test_scale(tmp_path, monkeypatch):
    out = tmp_path / "scale.json"
    settings = {"items": "1000 2000", "refill-items": "3000", "shard-items": "500 2000", "worlds": "2", "rounds": "2"}
    arguments = [word for name, words in settings.items() for word in (f"--{name}", *words.split())]
    monkeypatch.setattr(sys, "argv", ["scale", *arguments, "--results", str(out)])
    scale.main()
    found = json.loads(out.read_text())
    assert len(found["step"]) == 6 and len(found["refill"]) >= 1
    assert [(row["processes"], row["items"]) for row in found["shards"]] == [(2, 500), (2, 2000)]
    assert all(row["same_as_one"] for row in found["shards"])
    assert found["shards"][0]["rank_bytes"] == found["shards"][1]["rank_bytes"] > 0
    text = rendered(tmp_path)
    assert "| `fused_step`, `SparseAdam` |" in text and "| 2 | 2,000 |" in text
