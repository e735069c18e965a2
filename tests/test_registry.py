"""Names that settings give: who registers them, and what is said of wrong ones."""

from dataclasses import dataclass

import pytest
from bidistill import Config, UserError
from bidistill.registry import LOSSES, MODELS, Registry


@dataclass(frozen=True)
class Layers:
    layers: int = 2
    dropout: float = 0.0

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, found {self.layers}")


@pytest.fixture
def deep(monkeypatch):
    """A kind of model with settings."""
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.register("deep", lambda n_users, n_items, **settings: None, Layers)


def test_names_of_this_package():
    assert {"mf", "given"} <= set(MODELS) and {"bce", "bpr"} <= set(LOSSES) and len(LOSSES) >= 2
    with pytest.raises(UserError, match=r"there is no model 'mff': did you mean mf\?"):
        MODELS["mff"]
    with pytest.raises(UserError, match="there is no loss 'zzz': choose one of bce, bpr,.*full_softmax"):
        LOSSES["zzz"]


def test_a_name_is_taken_once():
    names = Registry("thing", "things", "bidistill.losses")
    names.register("a", 1)
    names.register("a", 1)
    for name, value, settings, words in (
        ("a", 2, None, "there is a thing 'a' already"),
        ("a b", 2, None, "must be a Python identifier"),
        ("b", 2, int, "must be a dataclass"),
    ):
        with pytest.raises(UserError, match=words):
            names.register(name, value, settings)


def test_an_entry_point_of_another_package(monkeypatch):
    """What is loaded when a name is looked up that nobody registered; what does not load says whose it is."""

    class Point:
        name, dist = "theirs", type("Dist", (), {"name": "their-package"})

        def load(self):
            return "their value"

    class Broken(Point):
        name = "broken"

        def load(self):
            raise ImportError("no module named theirs")

    monkeypatch.setattr(
        "bidistill.registry.entry_points", lambda group: [Point()] if group == "bidistill.x" else [Broken()]
    )
    assert Registry("x", "x", "bidistill.losses")["theirs"] == "their value"
    with pytest.raises(
        UserError, match=r"the y 'broken' of the installed package their-package cannot be loaded \(no module"
    ):
        _ = Registry("y", "y", "bidistill.losses")["broken"]


@pytest.mark.usefixtures("deep")
def test_settings_of_its_own(tmp_path):
    """From Python, the command line and TOML; written, read back and hashed."""
    config = Config().with_overrides({"teacher.kind": "deep", "teacher.args.layers": 3, "teacher.args.dropout": 0.5})
    assert config.teacher.args == {"layers": 3, "dropout": 0.5}
    assert MODELS.settings("deep", config.teacher.args, "teacher.args") == Layers(3, 0.5)
    config.to_toml(tmp_path / "config.toml")
    assert "args = {layers = 3, dropout = 0.5}" in (tmp_path / "config.toml").read_text()
    assert Config.from_toml(tmp_path / "config.toml") == config == Config().with_overrides(config.values())
    (tmp_path / "table.toml").write_text('[teacher]\nkind = "deep"\n[teacher.args]\nlayers = 3\ndropout = 0.5\n')
    assert Config.from_toml(tmp_path / "table.toml") == config
    assert config.hash() != Config().with_overrides({"teacher.kind": "deep"}).hash()


@pytest.mark.usefixtures("deep")
def test_settings_that_are_refused():
    for args, words in (
        ({"layer": 3}, "teacher.args.layer is no setting of the model 'deep': did you mean layers"),
        ({"layers": 0}, "teacher.args does not fit the model 'deep': layers must be at least 1, found 0"),
        ({"layers": {"a": 1}}, "teacher.args.layers must be text, a number, true or false, or a list"),
        ([1], "teacher.args must be a table of name = value"),
    ):
        with pytest.raises(UserError, match=words):
            Config().with_overrides({"teacher.kind": "deep", "teacher.args": args})
    with pytest.raises(UserError, match="teacher.args.layers is no setting of the model 'mf': it has none"):
        Config().with_overrides({"teacher.args.layers": 3})
