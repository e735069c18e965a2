"""Every operator keeps torch's contract: schema, fake, autograd registration, and torch.compile without a graph break."""

import pytest
import torch

import bdkernels as bd

OPS = torch.ops.bdkernels


def arguments() -> dict[str, tuple]:
    b, n, d, c = 4, 31, 5, 3
    f = (torch.randn(b, d), torch.randn(n, d), torch.randn(n))
    s = (torch.randn(b, 2), torch.randn(n, 2), None)
    ids = torch.randint(0, n, (b, c))
    seen = tuple(bd.Seen.from_pairs(torch.tensor([0, 1, 1, 3]), torch.tensor([3, 0, 30, 5]), b))
    t = torch.randn(b, c)
    scores = torch.randn(b, c, requires_grad=True)
    table = (torch.randn(7, d), torch.randn(n, d), torch.randn(n))
    users, positives, negatives = torch.tensor([1, 6, 0, 1]), torch.randint(0, n, (b,)), torch.randint(0, n, (b, 2))
    return {
        "score": (*(x.clone().requires_grad_() for x in f), ids),
        "score_forward": (*f, ids),
        "score_backward": (t, *f[:2], ids, True, True),
        "rank": (*f, ids, *seen),
        "count_above": (*f, t, ids, *seen, 2),
        "count_above_block": (torch.randn(b, n), t, ids, None, None, 0),
        "topk": (*f, 6, *seen),
        "sample": (*f, *s, *seen, torch.arange(b), 5, 1, 2, "tanh", 252.0, False, "exp", 2.5, True),
        "distill_loss": (scores, torch.randn(b, c), 1.0, 2.0, torch.rand(b, c) < 0.5, "bce"),
        "distill_loss_forward": (scores.detach(), torch.randn(b, c), 1.0, 2.0, None, "listwise"),
        "distill_loss_backward": (torch.ones(()), torch.randn(b, c), torch.randn(b, c), 1.0, 2.0, None, "listwise"),
        "fused_step": (
            *table,
            users,
            positives,
            negatives,
            ids,
            t,
            None,
            "bpr",
            "listwise",
            0.5,
            1.0,
            2.0,
            [torch.rand_like(t) for t in table for _ in range(2)],
            "adam",
            0.1,
            0.01,
            0.9,
            0.99,
            1e-8,
            None,
            torch.ones((), dtype=torch.float64),
        ),
        "softmax_loss": (*(x.clone().requires_grad_() for x in f), ids[:, 0] % b, ids[:, 1]),
        "softmax_loss_forward": (*f, ids[:, 0] % b, ids[:, 1], None),
        "softmax_gradient": (*f, ids[:, 0] % b, ids[:, 1]),
        "fused_gradient": (*table, users, positives, negatives, ids, t, None, "softmax", "bce", 0.5, 1.0, 1.0),
        "fused_loss": (
            *(t.clone().requires_grad_() for t in table),
            users,
            positives,
            negatives,
            ids,
            t,
            None,
            "softmax",
            "listwise",
            0.5,
            1.0,
            1.0,
        ),
    }


@pytest.mark.parametrize("name", list(arguments()))
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name).default, arguments()[name])


def test_opcheck_of_sample_with_numbers_on_the_device():
    further = 0, None, None, False, torch.tensor(1), torch.tensor(2)  # in the place of the first seed and step
    torch.library.opcheck(OPS.sample.default, (*arguments()["sample"], *further))


def test_every_operator_is_checked():
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("bdkernels::")
    }
    assert registered == set(arguments())


@pytest.mark.parametrize(
    "name", ["score_forward", "score_backward", "rank", "count_above", "topk", "sample", "fused_gradient", "fused_step"]
)
def test_fake_shapes_and_dtypes(name):
    """The fake's answer is the real one's, on meta tensors."""
    real = getattr(OPS, name)(*arguments()[name])
    meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), arguments()[name])
    fake = getattr(OPS, name)(*meta)
    for r, f in zip(
        real if isinstance(real, tuple) else (real,), fake if isinstance(fake, tuple) else (fake,), strict=True
    ):
        assert (r.shape, r.dtype) == (f.shape, f.dtype)


class TwoModels(torch.nn.Module):
    """A training step as a user writes it: both models, both directions."""

    def __init__(self, n_users: int = 12, n_items: int = 40) -> None:
        super().__init__()
        self.t_user, self.t_item = torch.nn.Embedding(n_users, 6), torch.nn.Embedding(n_items, 6)
        self.s_user, self.s_item = torch.nn.Embedding(n_users, 2), torch.nn.Embedding(n_items, 2)

    def forward(
        self, users: torch.Tensor, positives: torch.Tensor, indptr: torch.Tensor, indices: torch.Tensor, step: int
    ):
        t = bd.Factors(self.t_user(users), self.t_item.weight)
        s = bd.Factors(self.s_user(users), self.s_item.weight)
        drawn = bd.sample(t, s, 4, bd.Seen(indptr, indices), step=step, user_ids=users)
        loss = -torch.nn.functional.logsigmoid((t.user_factors * self.t_item(positives)).sum(1)).mean()
        for learner, guide, draws in ((s, t, drawn.to_student), (t, s, drawn.to_teacher)):
            ids = draws.ids.clamp(min=0)
            z = torch.einsum("bd,bkd->bk", learner.user_factors, learner.item_factors[ids])
            z_guide = torch.einsum("bd,bkd->bk", guide.user_factors, guide.item_factors[ids])
            loss = loss + bd.distill_loss(z, z_guide, 1.0, 1.0, draws.mask)
        ranks = bd.rank(s, positives[:, None], bd.Seen(indptr, indices))
        best = bd.topk(t, 3, bd.Seen(indptr, indices))
        return loss, ranks, best.ids


def test_compile_fullgraph_training_step():
    """The compiled step has the losses, ranks, and gradients of the eager one, over several steps."""
    model = TwoModels()
    users, positives = torch.tensor([3, 0, 11, 7]), torch.tensor([5, 39, 0, 20])
    seen = bd.Seen.from_pairs(torch.arange(4), positives, 4)
    compiled = torch.compile(model, fullgraph=True)
    for step in range(3):
        results = []
        for run in (model, compiled):
            model.zero_grad()
            loss, ranks, best = run(users, positives, *seen, step)
            loss.backward()
            results.append((loss.detach(), ranks, best, *[p.grad.clone() for p in model.parameters()]))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_factors_are_detached():
    """Ranks, draws and the scores of the best carry no gradient, and ask for none."""
    items = torch.nn.Parameter(torch.randn(9, 2))
    f = bd.Factors(torch.randn(3, 2, requires_grad=True), items)
    assert not bd.topk(f, 2).scores.requires_grad
