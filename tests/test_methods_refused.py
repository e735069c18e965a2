"""What is said of methods, and of settings for them, that are wrong: before a run begins, and in one sentence."""

import pytest
import torch
from bidistill import MF, Bidirectional, Config, Distiller, Method, UserError, generate, register_method, split
from bidistill.distill.method import COMMON, make_method
from bidistill.evaluation.ranks import seen_items
from bidistill.registry import METHODS
from bidistill.training.sharded import Sharded

from bdkernels import Draws

pytestmark = pytest.mark.usefixtures("outside")


@pytest.fixture(scope="module")
def parts():
    return split(generate(40, 50, 800, dim=4, seed=1)[0], "leave_one", seed=1)


def config(**overrides):
    return Config().with_overrides({name.replace("__", "."): value for name, value in overrides.items()})


def test_settings_that_a_method_does_not_know(outside, tmp_path):
    outside("top_of_guide")
    own = {"distill.method": "top_of_guide"}
    assert make_method(config().distill).subset == 0
    for values, words in (
        (
            {"distill.subset": 30},
            r"distill\.subset is set, but the method 'top_of_guide' does not know it: leave it out",
        ),
        ({"distill.subset": "auto"}, r"distill\.subset is set"),
        ({"distill.to_student.alpha": 3.0}, r"distill\.to_student is set"),
        ({"distill.side": "under"}, r"distill\.side is set"),
        ({"distill.tau_guide": 2.0}, r"distill\.tau_guide is set"),
        ({"distill.loss": "listwise", "distill.samples": 2}, r"distill\.loss is set"),
    ):
        with pytest.raises(UserError, match=words):
            make_method(config().with_overrides(own | values).distill)
    for name in COMMON:
        values = {"samples": 7, "resample_every": 5, "resample": "gradual", "pool": 3, "negatives_from_samples": True}
        changed = own | ({f"distill.{name}": values[name]} if name in values else {})
        assert make_method(config().with_overrides(changed).distill) == METHODS["top_of_guide"]()
    assert make_method(config(distill__method="none", distill__subset=30).distill) is None
    with pytest.raises(UserError, match=r"distill\.args\.taus is no setting .*'top_of_guide': did you mean tau\?"):
        config().with_overrides(own | {"distill.args": {"taus": 1.0}})
    with pytest.raises(UserError, match=r"distill\.args\.tau is no setting .*'bidirectional': it has none"):
        config(distill__args={"tau": 1.0})
    with pytest.raises(
        UserError, match=r"distill\.method must be one of bidirectional, cd, .*, top_of_guide, none, found 'x'"
    ):
        config(distill__method="x")


@pytest.mark.parametrize("listed", [{}, {"samples": 0, "pool": 1}])
def test_a_list_of_one_item_is_refused(listed):
    values = {f"distill__{name}": value for name, value in listed.items()}
    with pytest.raises(
        UserError, match=r"distill\.loss is listwise, but a list of one item .*set distill\.samples to 2"
    ):
        make_method(config(**values, distill__loss="listwise").distill)
    for enough in ({"distill__samples": 2}, {"distill__samples": 0, "distill__pool": 2}):
        assert make_method(config(**enough, distill__loss="listwise").distill)


def test_methods_that_are_wrong(outside, parts):
    def drawing(give, **members):
        return type("Wrong", (Method,), {"draw": lambda self, teacher, student, asked: give(asked), **members})()

    def losing(give):
        return drawing(None, loss=lambda self, learner, scores, guide_scores, draws: give(scores, draws))

    def made(method):
        return Distiller(method, seen_items(parts, "val"), parts.n_items, samples=2)

    models = MF(parts.n_users, parts.n_items, 2), MF(parts.n_users, parts.n_items, 2)
    users, ids = torch.arange(4), torch.zeros(4, 2, dtype=torch.int64)
    right = Draws(ids, ids >= 0)
    for give, words in (
        (lambda asked: {"student": right}, r"gave draws of \['student'\], asked for \['student', 'teacher'\]"),
        (
            lambda asked: dict.fromkeys(asked.learners, Draws(ids[:, :1], ids[:, :1] >= 0)),
            r"gave the student ids \[4, 1\]",
        ),
        (lambda asked: dict.fromkeys(asked.learners, Draws(ids.int(), ids >= 0)), r"torch\.int32"),
        (lambda asked: dict.fromkeys(asked.learners, Draws(ids, ids)), r"mask \[4, 2\] torch\.int64"),
    ):
        with pytest.raises(UserError, match=f"Wrong.draw {words}" if words.startswith("gave") else words):
            made(drawing(give))(users, *models)
    for give, words in (
        (lambda scores, draws: scores, r"finite scalar tensor.*found a tensor of shape \[2, 2\]"),
        (lambda scores, draws: 1.0, "found float"),
        (lambda scores, draws: (scores.sum(1) / draws.mask.sum(1)).mean(), "for rows without a draw too"),
        (lambda scores, draws: scores.detach().sum(), "must have a finite gradient"),
        (lambda scores, draws: (scores * 0).where(draws.mask, 0).sum().sqrt(), "must have a finite gradient"),
    ):
        with pytest.raises(UserError, match=words):
            made(losing(give))
    with pytest.raises(NotImplementedError, match="Method has no method draw"):
        made(Method())(users, *models)
    with pytest.raises(TypeError, match=r"method: expected a bidistill\.Method, got str"):
        made("bidirectional")
    for wrong in (
        {"learners": ["x"]},
        {"learners": []},
        {"resample": "now"},
        {"samples": 0},
        {"pool": 1.5},
        {"resample_every": -1},
        {"kind": "mse"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            Distiller(Bidirectional(), seen_items(parts, "val"), parts.n_items, **wrong)
    register_method("no_method", lambda **settings: 3)
    with pytest.raises(UserError, match=r"'no_method' gives int, not a bidistill\.Method"):
        make_method(config(distill__method="no_method").distill)
    register_method("narrow", lambda: Bidirectional())
    with pytest.raises(UserError, match=r"'narrow' cannot be made of distill\.args \{'a': 1\}"):
        make_method(config(distill__method="narrow", distill__args={"a": 1}).distill)


def test_on_several_processes_only_what_can_be_divided(outside):
    optimizers = {"teacher__optimizer": "sgd", "student__optimizer": "sgd"}
    Sharded(None).check(config(**optimizers))
    outside("top_of_guide")
    with pytest.raises(UserError, match=r"distill\.method 'top_of_guide' works on one process only"):
        Sharded(None).check(config(distill__method="top_of_guide", **optimizers))
