"""NormLoss, and which weights the parameter penalties see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights._layers import rows, weight_layers
from wellposed.weights.norm_loss import NormLoss, norm_loss, oblique_project_


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


def test_value_by_explicit_loops() -> None:
    ws = weights((3, 4), (5, 2, 3, 3))
    by_hand = sum((1 - sum(float(v) ** 2 for v in unit.flatten()) ** 0.5) ** 2 for w in ws for unit in w.detach())
    assert norm_loss(ws).item() == pytest.approx(by_hand, rel=1e-12)
    assert torch.autograd.gradcheck(lambda *w: norm_loss(w), tuple(ws))
    assert torch.autograd.gradgradcheck(lambda *w: norm_loss(w), tuple(ws))


def test_dead_units_have_gradient_zero() -> None:
    w = torch.zeros(2, 3, requires_grad=True)
    (g,) = torch.autograd.grad(norm_loss([w]), w)
    assert (g == 0).all()


def test_lengths_decay_to_one_at_the_exact_rate() -> None:
    """Under SGD alone r_t - 1 = (1 - 2 eta lam)^t (r_0 - 1), and directions stay."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False).double()
    start = model.weight.detach().clone()
    eta, lam, steps = 0.1, 0.3, 12

    class Nothing(wp.Task):
        reads = ("x",)

        def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {}

        def loss(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
            return torch.zeros(len(batch["x"]), dtype=torch.float64)

    recipe = wp.Recipe(NormLoss(strength=lam)).attach(model, Nothing())
    optimizer = torch.optim.SGD(model.parameters(), lr=eta)
    for _ in range(steps):
        recipe.step({"x": torch.zeros(2)}, optimizer)
    r0, r = start.norm(dim=1), model.weight.detach().norm(dim=1)
    torch.testing.assert_close(r - 1, (1 - 2 * eta * lam) ** steps * (r0 - 1), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(model.weight.detach() / r[:, None], start / r0[:, None], rtol=1e-12, atol=1e-13)


def test_projection_is_where_the_penalty_vanishes() -> None:
    ws = [w.detach() for w in weights((3, 4), (5, 2, 3, 3))]
    ws[0][1] = 0
    kept = [w.clone() for w in ws]
    oblique_project_(ws)
    assert norm_loss([ws[0][[0, 2]], ws[1]]).item() < 1e-28
    assert (ws[0][1] == 0).all()
    for new, old in zip(ws, kept, strict=True):
        cos = torch.cosine_similarity(new.flatten(1), old.flatten(1))
        assert (cos[old.flatten(1).norm(dim=1) > 0] > 1 - 1e-12).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_transposed_convolutions(groups: int) -> None:
    """A row holds exactly the weights that lead into one output channel."""
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    found = rows(layer)
    assert found.shape == (6, 4 // groups * 9)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    for unit in range(6):
        layer.zero_grad()
        layer(x)[0, unit].sum().backward()
        touched = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
        touched.weight = nn.Parameter((layer.weight.grad != 0).double())
        used = rows(touched)
        assert used[unit].all()
        assert used.sum() == used[unit].sum()


def test_which_weights_count() -> None:
    """Linear and convolution weights, tied ones once, no frozen ones, no biases and no norms."""
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Embedding(3, 5)
    )
    model[3].weight = model[2].weight
    model[4].weight.requires_grad_(False)
    assert weight_layers(NormLoss(), model) == ("0", "2")
    with pytest.raises(wp.RecipeError, match="NormLoss acts on weights, and the model has no trainable linear"):
        weight_layers(NormLoss(), nn.BatchNorm1d(3))


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains_and_pulls_lengths_to_one(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
        x = torch.randn(12, 1, 8, 8)
    else:
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
        x = torch.randn(12, 5, 8)
    recipe = wp.Recipe(NormLoss(strength=1.0)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(40)]
    assert terms[-1]["NormLoss"] < 0.1 * terms[0]["NormLoss"]
    assert terms[-1]["task"] < terms[0]["task"]
