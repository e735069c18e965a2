"""Models: score, factors and config agree; what the trainer relies on."""

import pytest
import torch
from bidistill import UserError, build_model
from bidistill.models import MF, Recommender, mf
from bidistill.models.kinds import config_of

import bdkernels


@pytest.mark.parametrize(("n_users", "n_items", "dim"), [(1, 1, 1), (7, 11, 3), (5, 300, 17)])
def test_score_is_the_dot_product_that_rank_uses(n_users, n_items, dim):
    model = MF(n_users, n_items, dim, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    users = torch.arange(n_users).flip(0)
    items = torch.randint(n_items, (n_users, 4), generator=torch.Generator().manual_seed(3))
    scores = model.score(users, items)
    assert scores.shape == (n_users, 4)
    p, q, b = (table.weight.detach().double() for table in (model.user_factors, model.item_factors, model.item_bias))
    wanted = (p @ q.T + b.T)[users].gather(1, items)
    torch.testing.assert_close(scores.detach().double(), wanted, rtol=1e-5, atol=1e-5)
    factors = model.factors(users)
    assert not factors.user_factors.requires_grad
    assert not factors.item_factors.requires_grad
    torch.testing.assert_close(bdkernels.score(factors, items).double(), wanted, rtol=1e-5, atol=1e-5)


def test_gradients_reach_only_the_rows_used():
    model = MF(6, 9, 4)
    model.score(torch.tensor([2, 2]), torch.tensor([[1, 3], [3, 8]])).sum().backward()
    rows = {name: set(p.grad.abs().sum(1).nonzero().flatten().tolist()) for name, p in model.named_parameters()}
    assert rows == {"user_factors.weight": {2}, "item_factors.weight": {1, 3, 8}, "item_bias.weight": {1, 3, 8}}


def test_sparse_gradients_equal_dense_ones():
    users, items = torch.tensor([0, 4, 4]), torch.tensor([[1, 1], [0, 2], [2, 2]])
    grads = []
    for sparse in (False, True):
        model = MF(5, 3, 2, seed=7, sparse=sparse)
        model.score(users, items).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
        assert all(grad.is_sparse == sparse for grad in grads[-1])
    for dense, sparse in zip(*grads, strict=True):
        torch.testing.assert_close(dense, sparse.to_dense())


def test_seed_decides_the_initial_values():
    first, again, other = (MF(4, 5, 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.user_factors.weight, again.user_factors.weight)
    assert not torch.equal(first.item_factors.weight, other.item_factors.weight)


@pytest.mark.parametrize("parts", [[range(23)], [range(8), range(8, 16), range(16, 23)], [range(5, 6), range(9, 9)]])
def test_a_part_of_the_tables_has_the_rows_of_the_whole(parts, monkeypatch):
    """Whatever the parts, also where they end within a block of rows that share a generator."""
    monkeypatch.setattr(mf, "BLOCK", 5)
    whole = MF(23, 23, 3, seed=4)
    assert whole.user_factors.weight.unique().numel() == whole.item_factors.weight.unique().numel() == 69
    for rows in parts:
        part = MF(23, 23, 3, seed=4, users=rows, items=rows)
        assert config_of(part) == config_of(whole)
        for ours, theirs in zip(part.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours, theirs[rows.start : rows.stop])
    other = MF(23, 23, 3, seed=4, users=range(5, 10), items=range(0))
    assert other.user_factors.weight.shape == (5, 3) and other.item_bias.weight.shape == (0, 1)


def test_build_model_takes_what_config_gives():
    model = MF(4, 5, 3, sparse=True)
    again = build_model(config_of(model))
    assert isinstance(again, Recommender)
    assert config_of(again) == config_of(model)
    again.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match=r"there is no model 'nmf': did you mean mf"):
        build_model({"kind": "nmf"})
    with pytest.raises(UserError, match="there is no model ''"):
        build_model({})
