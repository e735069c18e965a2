"""Messages of the library: records of one logger, nothing printed, lines of their own beside a progress bar."""

import ast
import io
import logging
import sys
from pathlib import Path

import pytest
from bidistill import Config, Trainer, generate, log_to_terminal, split
from bidistill.cli import main
from bidistill.logs import Terminal, log
from bidistill.training.callbacks import Callback

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "bidistill"
SETTINGS = {
    "teacher.dim": 4, "student.dim": 2, "train.batch_size": 64, "train.pretrain_epochs": 1, "train.epochs": 2, "eval.ks": (5,),
    "train.monitor": "ndcg@5",
}  # fmt: skip


@pytest.fixture(scope="module")
def parts():
    return split(generate(30, 40, 400, dim=4, seed=1)[0], "leave_one", seed=1)


@pytest.fixture(autouse=True)
def _logger_as_it_was(monkeypatch):
    monkeypatch.setattr(log, "handlers", [])
    level = log.level
    yield
    log.setLevel(level)


def printed(tree: ast.AST) -> list[int]:
    """Lines that print, or write what tqdm prints."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            found += [node.lineno] if name == "print" or (owner, name) == ("tqdm", "write") else []
    return found


def test_the_library_prints_nothing_but_in_its_command_line():
    assert printed(ast.parse("print(1)\ntqdm.write('')\nfile.write('')\nlog.info('')")) == [1, 2]
    for path in PACKAGE.rglob("*.py"):
        if "cli" not in path.parts and path.name != "logs.py":
            assert printed(ast.parse(path.read_text(encoding="utf-8"))) == [], path


@pytest.mark.filterwarnings("ignore:.*epoch 0 is kept")
def test_a_program_chooses_what_it_hears(parts, capsys, caplog):
    config = Config().with_overrides(SETTINGS)
    caplog.set_level(logging.INFO, logger="bidistill")
    Trainer(config, parts).fit()
    told = [record.getMessage() for record in caplog.records if record.name == "bidistill"]
    assert told[0] == "teacher and student train without the fused step: the optimizer 'adam' has no fused form"
    assert sum("at most" in line for line in told) == 3 and capsys.readouterr().out == ""
    log_to_terminal()
    log_to_terminal()  # which adds no second handler
    Trainer(config, parts).fit()
    shown = capsys.readouterr()
    times = lambda lines: [line.split()[:3] for line in lines]  # noqa: E731  the seconds differ
    assert times(shown.out.splitlines()) == times(told)
    log_to_terminal(logging.WARNING)
    Trainer(config, parts).fit()
    log.warning("two\nlines")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines()[-1] == "bidistill: warning: two lines"
    caplog.clear()
    Trainer(config.with_overrides({"run.progress": False}), parts).fit()
    assert not caplog.records


def test_the_command_line_leaves_the_logger_as_it_was(capsys):
    for _ in range(2):
        assert main(["train", "--data-path", "nowhere.csv"]) == 2
        assert log.handlers == [] and len(capsys.readouterr().err.splitlines()) == 1


class Screen(io.StringIO):
    """A terminal of one growing page: "\\r" goes back to the start of the line, and what is written there replaces what stood."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.at = [""], 0

    def isatty(self):
        return True

    def write(self, text):
        for sign in text:
            if sign == "\n":
                self.lines.append("")
                self.at = 0
            elif sign == "\r":
                self.at = 0
            else:
                line = self.lines[-1].ljust(self.at)
                self.lines[-1] = line[: self.at] + sign + line[self.at + 1 :]
                self.at += 1
        return len(text)


@pytest.mark.parametrize("handler", ["the program's own", "the command line's"])
def test_a_message_does_not_tear_the_bar(parts, monkeypatch, handler):
    class Chat(Callback):
        def on_step(self, run):
            log.info("x")

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    log.addHandler(logging.StreamHandler(screen) if handler == "the program's own" else Terminal())
    log.setLevel(logging.INFO)
    Trainer(Config().with_overrides(SETTINGS), parts, callbacks=[Chat()]).fit()
    told = [line.rstrip() for line in screen.lines]
    assert told.count("x") > 10
    assert not any("x" in line and "%" in line for line in told)
    bars = Screen()
    bars.write("joint:  50%|##\r" + "x\n")
    assert bars.lines[0] == "xoint:  50%|##"  # what a torn bar looks like here
