"""Scale-invariant weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.weights.scale_invariance import UnitWeights, effective_rates, equilibrium_norm, scale_invariant


class PreActivation(nn.Module):
    """BatchNorm before each convolution: the second one of a block meets a sum, not the BatchNorm registered next."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.zeros_(self.bn2.weight)  # the branch starts switched off

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(h))))))
        return self.head(F.relu(self.bn3(h)).mean((2, 3)))


def batch(*shape: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, *shape, generator=g), "y": torch.arange(12) % 3}


def mlp(eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, eps=eps), nn.ReLU(), nn.Linear(16, 3))


def test_doubling_finds_them_and_restores_them() -> None:
    model, x = mlp(), batch(6)["x"]
    params = {n: p for n, p in model.named_parameters() if p.ndim == 2}
    kept = {n: p.detach().clone() for n, p in params.items()}
    assert scale_invariant(lambda: model(x), params) == ("0.weight",)
    assert all(torch.equal(p, kept[n]) for n, p in params.items())
    assert scale_invariant(lambda: model.eval()(x), params) == ()  # running statistics do not follow
    nn.init.zeros_(model.get_parameter("3.weight"))
    assert scale_invariant(lambda: model.train()(x), params) == ("0.weight",)  # what hides everything is not one


def test_gradients_of_such_weights() -> None:
    """w . g = 0, and the gradient at a w is 1 / a times that at w."""
    model, data = mlp(eps=1e-30).double(), batch(6)
    w = model.get_parameter("0.weight")
    grads = []
    for scale in (1.0, 10.0):
        with torch.no_grad():
            w.mul_(scale)
        (g,) = torch.autograd.grad(F.cross_entropy(model(data["x"].double()), data["y"]), w)
        assert abs(float((g * w.detach()).sum())) < 1e-14
        grads.append(g)
    torch.testing.assert_close(grads[1], grads[0] / 10, rtol=1e-9, atol=1e-14)


def test_length_under_sgd_with_l2() -> None:
    """||w'||^2 = (1 - lr decay)^2 ||w||^2 + lr^2 ||g||^2, because g is orthogonal to w."""
    model, data = mlp(eps=1e-30).double(), batch(6)
    w = model.get_parameter("0.weight")
    optimizer = torch.optim.SGD([w], lr=0.3, weight_decay=0.1)
    F.cross_entropy(model(data["x"].double()), data["y"]).backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    expected = (1 - 0.03) ** 2 * w.detach().square().sum() + 0.09 * w.grad.square().sum()
    optimizer.step()
    torch.testing.assert_close(w.detach().square().sum(), expected, rtol=1e-14, atol=0)


def test_equilibrium_of_noisy_steps() -> None:
    """Gradients of the linear loss a . w / ||w|| with random a: lengths settle where the formula says."""
    g = torch.Generator().manual_seed(0)
    lr, decay, d = 0.5, 0.02, 50
    w = torch.randn(200, d, generator=g, dtype=torch.float64) / 4
    lengths, squares = [], []
    for t in range(1000):  # twenty times the 1 / (2 lr decay) in which it relaxes
        a, norm = torch.randn(200, d, generator=g, dtype=torch.float64), w.norm(dim=1, keepdim=True)
        unit_gradient = a - (a * w).sum(1, keepdim=True) * w / norm**2
        w = (1 - lr * decay) * w - lr * unit_gradient / norm
        if t >= 500:
            lengths.append(norm.pow(4).mean())
            squares.append(unit_gradient.square().sum(1).mean())
    expected = equilibrium_norm(lr, decay, float(torch.stack(squares).mean()))
    # The formula leaves out terms of relative order lr decay = 0.01 and the spread of ||w||^2 around its mean.
    assert float(torch.stack(lengths).mean()) ** 0.25 == pytest.approx(expected, rel=0.01)
    with pytest.raises(ValueError, match="above 0"):
        equilibrium_norm(0.1, 0.0, 1.0)


def test_effective_rates() -> None:
    w = {"w": torch.tensor([3.0, 4.0])}
    assert effective_rates(w, 0.5)["w"].item() == pytest.approx(0.5 / 25)
    assert effective_rates(w, 0.5, 0.1)["w"].item() == pytest.approx(0.5 / 25 / 0.95)
    assert effective_rates(w, 0.5, kind="adam")["w"].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="'sgd' and 'adam', got 'lamb'"):
        effective_rates(w, 0.5, kind="lamb")  # type: ignore[arg-type]


def test_method_keeps_the_function_and_unit_lengths() -> None:
    model, data = mlp(eps=1e-30), batch(6)
    before = model(data["x"])
    recipe = wp.Recipe(UnitWeights(length=2.0)).attach(model, wp.Classify(classes=3))
    recipe.step(data, torch.optim.SGD(model.parameters(), lr=0.0))
    torch.testing.assert_close(model(data["x"]), before)
    assert model.get_parameter("0.weight").norm().item() == pytest.approx(2.0, rel=1e-6)
    assert model.get_parameter("3.weight").norm().item() != pytest.approx(2.0, rel=1e-3)


def test_only_weights_that_meet_a_normalisation() -> None:
    torch.manual_seed(0)
    model, method = PreActivation(), UnitWeights()
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    gain = model.bn2.weight.detach().clone()
    recipe.step(batch(1, 8, 8), torch.optim.SGD(model.parameters(), lr=0.0))
    assert method.found == ("conv1.weight",)
    assert torch.equal(model.bn2.weight, gain)


def test_transformer_with_normalised_queries_and_keys() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
            self.nq, self.nk, self.head = nn.RMSNorm(8), nn.RMSNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.nq(self.q(x)), self.nk(self.k(x)), self.v(x)
            return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))

    torch.manual_seed(0)
    model, method = Block(), UnitWeights()
    model.k.weight = model.q.weight  # tied: still one direction
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=3))
    terms = [
        recipe.step(batch(5, 8), optimizer)
        for optimizer in [torch.optim.SGD(model.parameters(), lr=0.1)]
        for _ in range(30)
    ]
    assert method.found == ("q.weight",)
    assert terms[-1]["task"] < terms[0]["task"]


def test_nothing_to_act_on() -> None:
    model = nn.Sequential(nn.Linear(6, 3))
    recipe = wp.Recipe(UnitWeights()).attach(model, wp.Classify(classes=3))
    with pytest.raises(wp.RecipeError, match="UnitWeights acts on weights whose scale"):
        recipe.step(batch(6), torch.optim.SGD(model.parameters(), lr=0.1))


def test_half_precision_length() -> None:
    model = mlp().to(torch.bfloat16)
    recipe = wp.Recipe(UnitWeights()).attach(model, wp.Classify(classes=3))
    recipe.step({**batch(6), "x": batch(6)["x"].bfloat16()}, torch.optim.SGD(model.parameters(), lr=0.1))
    length = model.get_parameter("0.weight").detach().float().norm().item()
    assert math.isclose(length, 1.0, rel_tol=2**-8)
