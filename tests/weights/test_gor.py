"""Group orthogonalization."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.gor import GOR, Mode, group_orthogonality, groups_of


def weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_loops(w: Tensor, n: int, mode: Mode) -> float:
    w = w.flatten(1)
    size = len(w) // n
    sets = (
        [[i * size + k for k in range(size)] for i in range(n)]
        if mode == "inter"
        else [[i * size + k for i in range(n)] for k in range(size)]
    )
    total = 0.0
    for members in sets:
        v = w[members]
        r, d = v.shape
        gram = v @ v.T - torch.eye(r) if r <= d else v.T @ v - torch.eye(d)
        total += sum(float(g) ** 2 for g in gram.flatten())
    return total


@pytest.mark.parametrize("mode", ["inter", "intra"])
@pytest.mark.parametrize(("shape", "groups"), [((12, 20), 3), ((12, 2), 3), ((24, 2, 3, 3), 6), ((12, 2), 1)])
def test_value_by_explicit_loops(shape: tuple[int, ...], groups: int, mode: Mode) -> None:
    w = weight(*shape)
    assert group_orthogonality([w], groups, mode).item() == pytest.approx(by_loops(w, groups, mode), rel=1e-12)


@pytest.mark.parametrize("mode", ["inter", "intra"])
def test_gradient(mode: Mode) -> None:
    ws = (weight(8, 3).requires_grad_(), weight(8, 2, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda *w: group_orthogonality(w, 2, mode), ws)
    assert torch.autograd.gradgradcheck(lambda *w: group_orthogonality(w, 2, mode), ws)


def test_one_group_is_the_full_penalty() -> None:
    w = weight(8, 20)
    full = (w @ w.T - torch.eye(8)).square().sum()
    torch.testing.assert_close(group_orthogonality([w], 1, "inter"), full, rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", ["inter", "intra"])
def test_orthonormal_filters_cost_nothing(mode: Mode) -> None:
    w = torch.linalg.qr(weight(20, 12)).Q.T.contiguous()
    assert group_orthogonality([w], 3, mode).item() < 1e-26


def test_the_other_gram_matrix_differs_by_a_constant() -> None:
    """||V V^T - I_r||^2 = ||V^T V - I_d||^2 + r - d: no difference in gradient."""
    w = weight(12, 3)
    wide = (w @ w.T - torch.eye(12)).square().sum()
    torch.testing.assert_close(group_orthogonality([w], 1), wide - (12 - 3), rtol=1e-12, atol=0)


def test_number_of_groups() -> None:
    assert groups_of(64, 32) == 16  # at least 4 filters each
    assert groups_of(256, 32) == 32
    assert groups_of(10, 32) == 2
    assert groups_of(3, 32) == 1  # never 0
    assert groups_of(7, 32) == 1
    assert groups_of(60, 8) == 6  # 8 and 7 do not divide 60


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))


def test_which_layers_count() -> None:
    counted = {}
    for linear in (None, False, True):
        method = GOR(linear=linear)
        wp.Recipe(method).attach(conv(), wp.Classify(classes=3)).detach()
        counted[linear] = method.layers
    assert counted == {None: ("0",), False: ("0",), True: ("0", "4")}
    rows = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    method = GOR()
    wp.Recipe(method).attach(rows, wp.Classify(classes=3))
    assert method.layers == ("0", "2")
    with pytest.raises(wp.RecipeError, match="GOR acts on weights, and the model has no trainable convolution"):
        wp.Recipe(GOR(linear=False)).attach(nn.Linear(2, 2), wp.Classify(classes=2))
    with pytest.raises(ValueError, match="mode must be 'inter' or 'intra', got 'both'"):
        GOR(mode="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["conv", "transformer"])
@pytest.mark.parametrize("mode", ["inter", "intra"])
def test_trains_and_decorrelates(kind: str, mode: Mode) -> None:
    if kind == "conv":
        model: nn.Module = conv()
        x = torch.randn(12, 1, 8, 8)
    else:
        torch.manual_seed(0)
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
        x = torch.randn(12, 5, 8)
    recipe = wp.Recipe(GOR(groups=2, mode=mode, strength=0.1)).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(40)]
    assert terms[-1]["GOR"] < 0.6 * terms[0]["GOR"]
    assert terms[-1]["task"] < terms[0]["task"]
