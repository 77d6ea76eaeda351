"""Logit attenuating weight normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.lawn import LAWN, project_tangent, rescale


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, *shape, generator=g, dtype=dtype), "y": torch.arange(12) % 3}


def test_projection_and_rescaling() -> None:
    g = torch.Generator().manual_seed(0)
    d, w = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    found = project_tangent(d, w)
    assert abs(float((found * w).sum())) < 1e-14
    torch.testing.assert_close(project_tangent(found, w), found)
    along = d - found
    torch.testing.assert_close(along / w, torch.full_like(w, float(along[0, 0] / w[0, 0])))
    assert torch.equal(project_tangent(d, torch.zeros_like(d)), d)
    torch.testing.assert_close(rescale(w, torch.tensor(2.0, dtype=torch.float64)).norm().item(), 2.0)
    assert torch.equal(rescale(w, torch.tensor(0.0, dtype=torch.float64)), w)


def test_adam_by_hand() -> None:
    """Two free updates, then Adam from scratch on projected gradients, projected moves and constant lengths."""
    data, lr, eps = batch(6, dtype=torch.float64), 0.05, 1e-8
    model = mlp()
    recipe = wp.Recipe(LAWN(free=0.4)).attach(model, wp.Classify(classes=3), steps=5)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(5):
        recipe.step(data, optimizer)

    params = [p.detach() for p in mlp().parameters()]
    first, second, counts = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params], [0] * 4
    lengths: list[Tensor] = []
    for t in range(5):
        for p in params:
            p.requires_grad_()
        hidden = F.relu(F.linear(data["x"], params[0], params[1]))
        loss = F.cross_entropy(F.linear(hidden, params[2], params[3]), data["y"])
        grads = torch.autograd.grad(loss, params)
        params = [p.detach() for p in params]
        if t == 2:
            lengths = [p.norm() for p in params]
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            held = t >= 2 and p.ndim == 2
            if held and t == 2:
                first[i], second[i], counts[i] = torch.zeros_like(p), torch.zeros_like(p), 0
            if held:
                g = g - (g * p).sum() / (p * p).sum() * p
            first[i], second[i], counts[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g, counts[i] + 1
            d = first[i] / (1 - 0.9 ** counts[i]) / ((second[i] / (1 - 0.999 ** counts[i])).sqrt() + eps)
            if held:
                d = d - (d * p).sum() / (p * p).sum() * p
            new = p - lr * d
            params[i] = new * lengths[i] / new.norm() if held else new
    for ours, theirs in zip(model.parameters(), params, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_lengths_stay_in_the_second_phase(optimizer: type[torch.optim.Optimizer]) -> None:
    model = mlp()
    recipe = wp.Recipe(LAWN(free=0.2)).attach(model, wp.Classify(classes=3), steps=50)
    opt = optimizer(model.parameters(), lr=0.05)  # type: ignore[call-arg]
    lengths = []
    for _ in range(50):
        recipe.step(batch(6, dtype=torch.float64), opt)
        lengths.append(torch.stack([model.get_parameter(f"{i}.weight").detach().norm() for i in (0, 2)]))
    assert (lengths[9] - lengths[0]).abs().max() > 1e-3
    assert (torch.stack(lengths[10:]) - lengths[9]).abs().max() < 1e-14 * 50


@pytest.mark.parametrize(
    ("build", "shape", "layers", "expected"),
    [
        (mlp, (6,), (), ("0.weight", "2.weight")),
        (conv, (1, 8, 8), (), ("4.weight",)),  # what follows the last normalisation is homogeneous
        (conv, (1, 8, 8), ("*",), ("0.weight", "4.weight")),
        (transformer, (5, 8), (), ("2.weight",)),
        (transformer, (5, 8), ("*self_attn*",), ("0.self_attn.in_proj_weight", "0.self_attn.out_proj.weight")),
    ],
)
def test_which_weights_are_held(
    build: Callable[[], nn.Sequential], shape: tuple[int, ...], layers: Sequence[str], expected: tuple[str, ...]
) -> None:
    model = build().float()
    method = LAWN(free=0.0, layers=layers)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3), steps=20)
    assert method.edits == expected
    before = {n: p.detach().norm() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    terms = [recipe.step(batch(*shape), optimizer) for _ in range(20)]
    assert terms[-1]["task"] < terms[0]["task"]
    for name, p in model.named_parameters():
        if p.ndim > 1:
            assert ((p.detach().norm() - before[name]).abs() < 1e-5) == (name in expected), name


def test_tied_frozen_unused_and_half_precision_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.still, self.head = nn.Linear(6, 6), nn.Linear(6, 3).to(torch.bfloat16)
            self.two.weight = self.one.weight
            self.still.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.still(self.two(self.one(x))).to(torch.bfloat16)).float()

    model, method = Net(), LAWN(free=0.0)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3), steps=3)
    assert method.edits == ("one.weight", "idle.weight", "head.weight")
    idle, length = model.idle.weight.detach().clone(), model.head.weight.detach().float().norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        recipe.step(batch(6), optimizer)
    torch.testing.assert_close(model.idle.weight.detach(), idle, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.head.weight.detach().float().norm(), length, rtol=2**-8, atol=0)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="share of training"):
        wp.Recipe(LAWN()).attach(mlp().float(), wp.Classify(classes=3)).step(
            batch(6), torch.optim.SGD(mlp().parameters(), lr=0.1)
        )
    with pytest.raises(wp.RecipeError, match="no matrix after the model's last normalisation"):
        wp.Recipe(LAWN()).attach(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), wp.Classify(classes=3))
    with pytest.raises(wp.RecipeError, match="no layer with a trained matrix is called 'head'; the model has 0, 2"):
        wp.Recipe(LAWN(layers=("head",))).attach(mlp(), wp.Classify(classes=3))
    with pytest.raises(wp.RecipeError, match=r"LAWN edits '0.weight' in place, and it is reparam"):
        wp.Recipe(LAWN()).attach(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))), wp.Classify())
