"""NextToken and MaskedModel: which places count, and how much."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.tasks import MaskedModel, NextToken


def test_next_token_is_the_mean_over_real_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    y = torch.tensor([[1, 2, 3, 4], [0, -100, -100, -100], [2, 2, -100, -100]])
    task = NextToken(5)
    expected = []
    for row, target in zip(logits, y, strict=True):
        terms = [-torch.log(row[t].exp() / row[t].exp().sum())[k] for t, k in enumerate(target.tolist()) if k != -100]
        expected.append(sum(terms) / len(terms))
    torch.testing.assert_close(task.loss({"logits": logits}, {"y": y}), torch.stack(expected))
    assert task.weight({"y": y}).tolist() == [4, 1, 2]
    torch.testing.assert_close(
        task.mean_loss({"logits": logits}, {"y": y}), F.cross_entropy(logits.flatten(0, 1), y.flatten())
    )


def test_outputs_with_logits_are_accepted() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Embedding(5, 5)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.net(x), loss=None)

    x = torch.randint(5, (2, 3))
    model = Wrapped()
    assert torch.equal(NextToken().forward(model, {"x": x})["logits"], model.net(x))


def test_padding_gets_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    y = torch.tensor([[1, 2, -100], [3, -100, -100]])
    for value in (
        NextToken().loss({"logits": logits}, {"y": y}).sum(),
        NextToken().mean_loss({"logits": logits}, {"y": y}),
    ):
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.equal(grad.abs().sum(-1) > 0, y != -100)


def test_a_sample_of_padding_only_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(5, 5)
    recipe = Recipe().attach(model, NextToken())
    x, y = torch.randint(5, (3, 4)), torch.randint(5, (3, 4))
    y[2] = -100
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    both = recipe.step({"x": x, "y": y}, optimizer)["task"]
    assert torch.equal(recipe.step({"x": x[:2], "y": y[:2]}, optimizer)["task"], both)


def test_masked_tokens_count_at_hidden_places_only() -> None:
    torch.manual_seed(0)
    logits, y = torch.randn(2, 3, 5, requires_grad=True), torch.randint(5, (2, 3))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    rows = MaskedModel("token").loss({"logits": logits}, {"y": y, "mask": mask})
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(rows[0], -(log_probs[0, 0, y[0, 0]] + log_probs[0, 2, y[0, 2]]) / 2)
    torch.testing.assert_close(rows[1], -log_probs[1, 2, y[1, 2]])
    (grad,) = torch.autograd.grad(rows.sum(), logits)
    assert torch.equal(grad.abs().sum(-1) > 0, mask)


def test_masked_tokens_equal_next_token_with_ignored_targets() -> None:
    logits, y, mask = torch.randn(6, 4, 5), torch.randint(5, (6, 4)), torch.rand(6, 4) < 0.6
    found = MaskedModel("token").loss({"logits": logits}, {"y": y, "mask": mask})
    torch.testing.assert_close(found, NextToken().loss({"logits": logits}, {"y": y.masked_fill(~mask, -100)}))


def test_masked_patches_are_mean_squared_errors() -> None:
    p, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])  # zeros and ones serve as well as booleans
    task = MaskedModel("real")
    rows = task.loss({"prediction": p}, {"y": y, "mask": mask})
    d = (p - y).square()
    torch.testing.assert_close(rows, torch.stack([d[0, :2].mean(), d[1, 2].mean()]))
    assert task.weight({"mask": mask}).tolist() == [2, 1]
    assert (task.target, task.yields) == ("real", ("prediction",))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NextToken(0)
    with pytest.raises(ValueError, match="'token' or 'real'"):
        MaskedModel("pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave classes out"):
        MaskedModel("real", classes=3)
    with pytest.raises(ValueError, match="prediction has shape"):
        MaskedModel("real").loss({"prediction": torch.zeros(2, 3)}, {"y": torch.zeros(2, 3, 1)})


def test_repr_evaluates_back() -> None:
    assert eval(repr(NextToken(7))).classes == 7
    assert eval(repr(MaskedModel("token", classes=7))).classes == 7
    assert eval(repr(MaskedModel("real"))).target == "real"


def test_a_microbatch_of_padding_only_changes_nothing() -> None:
    torch.manual_seed(0)
    weights = []
    real = {"x": torch.randint(5, (3, 4)), "y": torch.randint(5, (3, 4))}
    padding = {"x": real["x"], "y": torch.full((3, 4), -100)}
    start = torch.randn(5, 5)
    for window in ([real], [real, padding], [padding, real]):
        model = nn.Embedding.from_pretrained(start.clone(), freeze=False)
        Recipe().attach(model, NextToken()).step(window, torch.optim.SGD(model.parameters(), lr=0.1))
        weights.append(model.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
