"""Invariance penalties: the excess risk they are, scales, eigenvalues, and where they change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.adaptation.irm_gram import IRM, irm_gradient_penalty, irm_gram_penalty


def problem(rows: int = 60, dim: int = 4, outputs: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, head, targets and environments, of which number 2 is absent."""
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(rows, dim, generator=g, dtype=torch.float64) * torch.tensor([1.0, 3, 0.1, 1])[:dim]
    w = torch.randn(dim, outputs, generator=g, dtype=torch.float64)
    y = torch.randn(rows, outputs, generator=g, dtype=torch.float64)
    return phi, w, y, torch.tensor([0, 1, 3])[torch.randint(3, (rows,), generator=g)]


@pytest.mark.parametrize("outputs", [1, 3])
def test_gram_penalty_is_the_excess_risk_over_a_head_of_its_own(outputs: int) -> None:
    phi, w, y, place = problem(outputs=outputs)
    residual = phi @ w - y
    found = irm_gram_penalty(phi, residual.squeeze(-1), place, 4)
    assert found[2] == 0
    for e in (0, 1, 3):
        own = torch.linalg.lstsq(phi[place == e], y[place == e]).solution
        best = (phi[place == e] @ own - y[place == e]).square().mean()
        assert found[e].item() == pytest.approx((residual[place == e].square().mean() - best).item(), rel=1e-11)


def test_gradient_penalty_by_autograd_and_the_eigenvalue_sandwich() -> None:
    phi, w, y, place = problem()
    w.requires_grad_()
    gram = irm_gram_penalty(phi, (phi @ w - y)[:, 0].detach(), place, 4)
    slope = irm_gradient_penalty(phi, (phi @ w - y)[:, 0].detach(), place, 4)
    for e in (0, 1, 3):
        risk = (phi[place == e] @ w - y[place == e]).square().mean()
        (g,) = torch.autograd.grad(risk, w)
        assert slope[e].item() == pytest.approx(g.square().sum().item(), rel=1e-12)
        values = torch.linalg.eigvalsh(phi[place == e].T @ phi[place == e] / (place == e).sum())
        assert values[0] * gram[e] <= slope[e] / 4 <= values[-1] * gram[e]


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_scales_of_features_do_not_matter(ridge: float) -> None:
    phi, w, y, place = problem()
    residual = (phi @ w - y)[:, 0]
    shrunk = phi * torch.tensor([1.0, 1e-3, 1.0, 1e3])  # the head grows in turn: the residual stays
    one, other = (irm_gram_penalty(p, residual, place, 4, ridge) for p in (phi, shrunk))
    assert torch.allclose(one, other, rtol=1e-10)
    small = irm_gradient_penalty(1e-3 * phi, residual, place, 4)
    assert torch.allclose(small, 1e-6 * irm_gradient_penalty(phi, residual, place, 4), rtol=1e-12)


def test_features_of_full_rank_make_it_the_risk_minus_a_constant() -> None:
    """Then every environment's best head can undo the features, and the penalty asks for nothing new."""
    x, w, y, place = problem()
    differences = []
    for seed in (1, 2):
        mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        residual = (x @ mix @ w - y)[:, 0]
        penalty = irm_gram_penalty(x @ mix, residual, place, 4)
        differences.append([residual[place == e].square().mean().item() - penalty[e].item() for e in (0, 1, 3)])
    assert differences[0] == pytest.approx(differences[1], rel=1e-10)


def test_gradients_reach_features_and_head() -> None:
    phi, w, y, place = problem(rows=20)

    def penalty(p: Tensor, v: Tensor) -> Tensor:
        return irm_gram_penalty(p, (p @ v - y[:20])[:, 0], place, 4, 1e-3)

    assert torch.autograd.gradcheck(penalty, (phi.requires_grad_(), w.requires_grad_()))


def test_dead_features_and_few_samples_stay_finite() -> None:
    phi = torch.zeros(6, 4, requires_grad=True)
    place = torch.arange(6) % 2
    found = irm_gram_penalty(phi, torch.ones(6), place, 2, 1e-4)
    assert not found.any()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert phi.grad is not None
    assert phi.grad.isfinite().all()
    few = irm_gram_penalty(torch.randn(6, 20), torch.ones(6), place, 2, 1e-4)
    assert few.tolist() == pytest.approx([1.0, 1.0], rel=0.01)  # 20 features fit three samples: all risk is excess


def shifted(noises: tuple[float, ...], seed: int) -> dict[str, Tensor]:
    """Two causes and two effects of y; the noise of the effects is the environment's."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.tensor(noises).repeat_interleave(300)[:, None]
    causes = torch.randn(len(noise), 2, generator=g)
    y = causes.sum(1) + torch.randn(len(noise), generator=g)
    effects = y[:, None] + noise * torch.randn(len(noise), 2, generator=g)
    place = torch.arange(len(noises)).repeat_interleave(300)
    return {"x": torch.cat([causes, effects], 1), "y": y, "environment": place}


@pytest.mark.parametrize("measure", ["gram", "gradient"])
def test_training_prefers_causes(measure: str) -> None:
    coefficients = {}
    for strength in (0.0, 300.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 1))
        method = IRM(layer="0", environments=3, measure=measure, strength=wp.WarmUp(strength, 0.2))  # type: ignore[arg-type]
        recipe = wp.Recipe(method).attach(model, wp.Regress(), steps=300)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(300):
            recipe.step(shifted((0.2, 1.0, 2.0), 0), optimizer)
        weight = (model[1].weight @ model[0].weight).detach()[0]  # type: ignore[operator]
        coefficients[strength] = weight[2:].abs().sum() / weight.abs().sum()
    assert coefficients[300.0] < 0.75 * coefficients[0.0]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.pool, self.head = nn.Linear(40, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.block(x).flatten(1)))


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.Linear(3, 1)
    )
    model, layer, x = (
        (conv, "4", torch.randn(24, 1, 8, 8)) if kind == "conv" else (Encoder(), "pool", torch.randn(24, 5, 8))
    )
    data = {"x": x, "y": torch.linspace(-1, 1, 24), "environment": torch.arange(24) % 2}
    recipe = wp.Recipe(IRM(layer=layer, environments=2, strength=1.0)).attach(model, wp.Regress())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    terms = [recipe.step(data, optimizer) for _ in range(40)]
    assert terms[0]["IRM"] > 0
    assert terms[-1]["total"] < terms[0]["total"]


def test_bad_input() -> None:
    model = nn.Linear(4, 1)
    recipe = wp.Recipe(IRM(layer="", environments=2)).attach(model, wp.Regress())
    with pytest.raises(ValueError, match="IRM: the batch has no entry 'environment'; it has x, y"):
        recipe.step({"x": torch.randn(4, 4), "y": torch.randn(4)}, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="needs the squared loss"):
        wp.Recipe(IRM(layer="", environments=2)).attach(model, wp.Regress("absolute"))
    with pytest.raises(ValueError, match="measure must be 'gram' or 'gradient', got 'v1'"):
        IRM(layer="", environments=2, measure="v1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="environments must be at least 2, got 1"):
        IRM(layer="", environments=1)
