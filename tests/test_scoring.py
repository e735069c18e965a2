"""How a model's scores reach the operators: `scorer_of` and its like."""

import pytest
import torch
from bidistill.errors import UserError
from bidistill.models import MF
from bidistill.models.modes import evaluating
from bidistill.models.scoring import guide_scores, listed_scores, require_factors, scorer_of
from torch import nn

import bdkernels as bd


class Distance(nn.Module):
    """Negative squared distance, with dropout, which scoring must switch off."""

    def __init__(self, n_users=7, n_items=11, dim=3):
        super().__init__()
        self.n_items = n_items
        self.users, self.items = nn.Embedding(n_users, dim), nn.Embedding(n_items, dim)
        self.dropout = nn.Dropout(0.5)

    def score(self, users, items):
        return -(self.dropout(self.users(users))[:, None] - self.items(items)).square().sum(2)


class Blocks(Distance):
    def score_block(self, users, first, stop):
        return -torch.cdist(self.users(users), self.items.weight[first:stop]).square()


class Session(nn.Module):
    """Its queries are a dict of tensors."""

    n_items = 11

    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(11, 3)

    def score(self, queries, items):
        history = self.items(queries["history"]).mean(1) * queries["scale"][:, None]
        return (history[:, None] * self.items(items)).sum(2)


def test_a_model_with_factors_gives_them():
    model, users = MF(7, 11, 3), torch.tensor([2, 5])
    scorer = scorer_of(model, users)
    assert isinstance(scorer, bd.Factors)
    ids = torch.tensor([[1, 2], [3, 3]])
    assert torch.equal(guide_scores(model, users, ids), bd.score(scorer, ids))


@pytest.mark.parametrize("kind", [Distance, Blocks])
def test_blocks_of_a_model_without_factors(kind):
    model, users = kind(), torch.tensor([2, 5, 2])
    scorer = scorer_of(model, users)
    assert (scorer.n_rows, scorer.n_items, scorer.device) == (3, 11, torch.device("cpu"))
    block = scorer.block(4, 9)
    assert not block.requires_grad and model.training and model.dropout.training
    model.eval()
    want = model.score(users, torch.arange(4, 9).expand(3, 5))
    assert torch.allclose(block, want, atol=1e-5) and block.dtype == torch.float32
    assert torch.allclose(scorer.take(torch.tensor([1])).block(0, 11), scorer.block(0, 11)[1:2], atol=1e-5)
    assert torch.allclose(guide_scores(model, users, torch.arange(3).expand(3, 3)), scorer.block(0, 3), atol=1e-5)


def test_queries_may_be_a_dict_of_tensors():
    model, queries = Session(), {"history": torch.randint(11, (4, 6)), "scale": torch.rand(4)}
    scorer = scorer_of(model, queries)
    assert scorer.n_rows == 4
    assert torch.equal(scorer.take(torch.tensor([3, 1])).block(2, 5), scorer.block(2, 5)[[3, 1]])


def test_listed_scores_carry_a_gradient():
    model = Distance()
    scores = listed_scores(model, torch.tensor([0, 1]), torch.zeros(2, 4, dtype=torch.int64))
    assert scores.requires_grad and scores.shape == (2, 4)


def test_modes_are_as_they_were():
    model = Distance()
    model.users.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    assert model.training and model.dropout.training and not model.users.training


def test_errors_name_the_model_and_what_it_gave():
    class Wrong(Distance):
        def score(self, users, items):
            return torch.zeros(len(users))

    class WrongBlocks(Distance):
        def score_block(self, users, first, stop):
            return None

    users = torch.tensor([0, 1])
    with pytest.raises(
        UserError, match=r"Wrong.score\(queries, items\) must give a tensor of shape \[2, 5\], found \[2\]"
    ):
        scorer_of(Wrong(), users).block(0, 5)
    with pytest.raises(UserError, match=r"Wrong.score\(queries, items\) must give .* \[2, 3\], found \[2\]"):
        listed_scores(Wrong(), users, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(UserError, match=r"WrongBlocks.score_block.* \[2, 5\], found NoneType"):
        scorer_of(WrongBlocks(), users).block(0, 5)
    with pytest.raises(UserError, match="the model Linear has no score: give it n_items and score"):
        scorer_of(nn.Linear(2, 2), users)


def test_several_processes_need_factors():
    require_factors(MF(2, 3, 1), "this")
    with pytest.raises(
        UserError, match=r"^this needs factors\(users\) of a model, which Distance does not have: .* torchrun$"
    ):
        require_factors(Distance(), "this")
