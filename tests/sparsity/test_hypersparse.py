"""HyperSparse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.sparsity.hypersparse import INFLECTION, HyperSparse, global_magnitude_mask, hypersparse_loss


def weights() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((6, 5), (4, 2, 3), (10,))]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), "y": torch.arange(12) % 3}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_gradient_is_the_closed_form_and_the_value_is_zero(rate: float) -> None:
    ws = weights()
    loss = hypersparse_loss(ws, rate)
    assert loss.item() == 0
    found = torch.autograd.grad(loss, ws)
    size = sorted(abs(float(v)) for w in ws for v in w.detach().flatten())
    s = math.atanh(1 / math.sqrt(3)) / size[round(rate * len(size)) - 1]
    total, reached = sum(size), sum(math.tanh(s * v) for v in size)
    for w, g in zip(ws, found, strict=True):
        w = w.detach()
        wanted = w.sign() * total * s / (s * w).cosh() ** 2 / reached
        torch.testing.assert_close(g, wanted, rtol=1e-12, atol=1e-14)


def test_the_authors_form_has_the_same_gradient() -> None:
    """sum |w| T / sg(T) - sum |w|, with sum |w| differentiated too: the two extra terms cancel."""
    ws = weights()
    size = torch.cat([w.flatten() for w in ws]).abs()
    s = INFLECTION / size.detach().kthvalue(round(0.8 * len(size))).values
    reached = torch.tanh(s * size).sum()
    theirs = torch.autograd.grad(size.sum() * reached / reached.detach() - size.sum(), ws)
    ours = torch.autograd.grad(hypersparse_loss(ws, 0.8), ws)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("multiple", "ratio"), [(1, 1.5), (3, 13.5), (4, 49.0), (5, 181.5)])
def test_pull_on_large_weights_fades_as_predicted(multiple: int, ratio: float) -> None:
    """Pull on a tiny weight over that at k times the threshold: cosh^2(0.6585 k)."""
    w = torch.tensor([1e-9, 1.0, float(multiple)], dtype=torch.float64, requires_grad=True)
    rate = 2 / 3 if multiple > 1 else 1.0
    (g,) = torch.autograd.grad(hypersparse_loss([w], rate), w)
    assert (g[0] / g[2]).item() == pytest.approx(math.cosh(INFLECTION * multiple) ** 2, rel=1e-9)
    assert (g[0] / g[2]).item() == pytest.approx(ratio, rel=1e-9)


def test_weights_that_are_zero_are_no_trouble() -> None:
    w = torch.zeros(10, requires_grad=True)
    (g,) = torch.autograd.grad(hypersparse_loss([w], 0.5), w)
    assert torch.isfinite(g).all()
    half = torch.cat([torch.zeros(5), torch.ones(5)]).requires_grad_()
    (g,) = torch.autograd.grad(hypersparse_loss([half], 0.4), half)
    assert torch.isfinite(g).all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.98])
def test_mask_keeps_the_largest_of_all_layers_together(rate: float) -> None:
    ws = [w.detach() for w in weights()]
    ws[2].fill_(0.5)  # ties are cut to the exact share
    masks = global_magnitude_mask(ws, rate)
    n = sum(w.numel() for w in ws)
    assert sum(int((~m).sum()) for m in masks) == round(rate * n)
    kept = torch.cat([w[m].abs() for w, m in zip(ws, masks, strict=True)])
    gone = torch.cat([w[~m].abs() for w, m in zip(ws, masks, strict=True)])
    assert not len(gone) or kept.min() >= gone.max()


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)


def test_prunes_once_at_its_time_and_stays_pruned() -> None:
    model = mlp()
    recipe = wp.Recipe(HyperSparse(prune_rate=0.75, prune_at=0.5)).attach(model, wp.Classify(classes=3), steps=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)  # its momentum would revive pruned weights
    masks, terms = [], []
    for _ in range(8):
        terms.append(recipe.step(batch(), optimizer))
        masks.append(torch.cat([(p != 0).flatten() for p in model.parameters() if p.ndim > 1]))
    n = 6 * 32 + 32 * 3
    assert [int((~m).sum()) for m in masks] == [0] * 4 + [round(0.75 * n)] * 4
    assert all(torch.equal(m, masks[4]) for m in masks[5:])
    assert ["HyperSparse" in t for t in terms] == [True] * 4 + [False] * 4, "fine-tuning is unpenalised"
    assert all((p != 0).any() for p in model.parameters() if p.ndim == 1), "a bias or norm was pruned"
    recipe.detach()
    assert zeros(model) == round(0.75 * n)


@pytest.mark.parametrize("at", [3, 6])
def test_resumes_bit_exactly_before_and_after_pruning(at: int) -> None:
    def build() -> tuple[nn.Module, wp.Recipe, torch.optim.Optimizer]:
        model = mlp()
        recipe = wp.Recipe(HyperSparse(prune_rate=0.75, prune_at=0.5)).attach(model, wp.Classify(classes=3), steps=8)
        return model, recipe, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    model, recipe, optimizer = build()
    for i in range(8):
        if i == at:
            saved = copy.deepcopy([model.state_dict(), recipe.state_dict(), optimizer.state_dict()])
        recipe.step(batch(), optimizer)
    again, other, opt = build()
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    opt.load_state_dict(saved[2])
    for _ in range(at, 8):
        other.step(batch(), opt)
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_strong_penalty_prepares_for_pruning() -> None:
    """What remains in the weights that will be pruned: less with the penalty than without."""
    shares = {}
    for strength in (0.0, 0.02):
        model = mlp()
        recipe = wp.Recipe(HyperSparse(prune_rate=0.75, prune_at=1.0, strength=strength))
        recipe.attach(model, wp.Classify(classes=3), steps=150)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(150):
            recipe.step(batch(), optimizer)
        size = torch.cat([p.detach().abs().flatten() for p in model.parameters() if p.ndim > 1]).sort().values
        shares[strength] = float(size[: round(0.75 * len(size))].sum() / size.sum())
    assert shares[0.02] < 0.7 * shares[0.0]


def test_convnet_and_transformer() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    transformer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    for model, shape in ((conv, (1, 8, 8)), (transformer, (5, 8))):
        recipe = wp.Recipe(HyperSparse(prune_rate=0.5)).attach(model, wp.Classify(classes=3), steps=20)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(2))
        terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(20)]
        assert terms[-1]["task"] < terms[0]["task"]
        assert zeros(model) > 0


def test_what_it_cannot_do_is_said() -> None:
    model = mlp()
    recipe = wp.Recipe(HyperSparse(strength=1e-4)).attach(model, wp.Classify(classes=3))
    with pytest.raises(ValueError, match="HyperSparse prunes at a share of training and needs to know how far it is"):
        recipe.step(batch(), torch.optim.SGD(model.parameters(), lr=0.1))
    recipe.detach()
    with pytest.raises(wp.RecipeError, match=r"HyperSparse edits '0.weight' in place, and it is reparametrised"):
        wp.Recipe(wp.WeightCompander(), HyperSparse()).attach(model, wp.Classify(classes=3))
    with pytest.raises(ValueError, match="prune_rate must be 0 to"):
        HyperSparse(prune_rate=1.0)
