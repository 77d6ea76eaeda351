"""Edge of stability: closed dynamics against descent on the weights, the diagnostic against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from wellposed.core.card import card
from wellposed.theory.edge_of_stability import QuadraticRegression, edge_of_stability


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_closed_dynamics_equal_descent_on_the_weights() -> None:
    model = QuadraticRegression.random(3, 5, 0.05, generator())
    w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    found = model.run(1.0, 50)
    for t in range(51):
        z = model.residual + model.jacobian @ w + torch.einsum("dij,i,j->d", model.curvature, w, w) / 2
        loss = z.square().sum() / 2
        assert float(found.loss[t]) == pytest.approx(loss.item(), rel=1e-9, abs=1e-18)
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - gradient).detach().requires_grad_()


def test_linear_models_do_not_sharpen() -> None:
    model = QuadraticRegression.random(3, 5, 0.05, generator())
    flat = QuadraticRegression(model.residual, model.jacobian, torch.zeros_like(model.curvature)).run(0.5, 30)
    assert torch.allclose(flat.eigenvalue, torch.ones_like(flat.eigenvalue))
    assert (flat.loss.diff() < 0).all()


def test_expansion_of_a_quadratic_is_the_quadratic() -> None:
    model = QuadraticRegression.random(3, 5, 0.05, generator())
    shift = torch.randn(5, dtype=torch.float64, generator=generator(1))

    def outputs(w: Tensor) -> Tensor:
        return model.residual + model.jacobian @ w + torch.einsum("dij,i,j->d", model.curvature, w, w) / 2

    again = QuadraticRegression.of(outputs, shift, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(again.curvature, model.curvature)
    assert torch.allclose(again.residual, outputs(shift) - 1)
    assert torch.allclose(again.jacobian, model.jacobian + model.curvature @ shift)


def test_run_ends_when_fitted_and_when_it_diverges() -> None:
    model = QuadraticRegression.random(3, 5, 0.05, generator())
    ended = model.run(0.5, 10_000, enough=1e-6)
    assert len(ended.loss) < 10_000
    assert (2 * ended.loss[-1]).sqrt() <= 1e-6 < (2 * ended.loss[-2]).sqrt()
    wild = QuadraticRegression(100 * model.residual, model.jacobian, model.curvature).run(5.0, 10_000)
    assert len(wild.loss) < 100
    with pytest.raises(ValueError, match="lr must be above 0"):
        model.run(0.0, 1)


def test_diagnostic_against_dense_matrices() -> None:
    assert card(edge_of_stability).formula
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    params = dict(net.named_parameters())
    found = edge_of_stability(lambda: net(x), params, y, lr=0.1, iterations=10)

    def split(w: Tensor) -> dict[str, Tensor]:
        pieces = torch.split(w, [p.numel() for p in params.values()])
        return {n: piece.view_as(p) for piece, (n, p) in zip(pieces, params.items(), strict=True)}

    def outputs(w: Tensor) -> Tensor:
        return torch.func.functional_call(net, split(w), (x,)).flatten()

    def largest(w: Tensor) -> float:
        return float(torch.linalg.matrix_norm(torch.func.jacrev(outputs)(w), 2).square())

    w = torch.cat([p.detach().flatten() for p in params.values()])
    assert float(found.eigenvalue) == pytest.approx(largest(w), rel=1e-9)
    assert float(found.position) == pytest.approx(0.05 * largest(w), rel=1e-9)
    flow = -torch.func.grad(lambda w: (outputs(w) - y.flatten()).square().sum() / 2)(w)
    h = 1e-5
    numeric = (largest(w + h * flow) - largest(w - h * flow)) / (2 * h)
    assert float(found.rate) == pytest.approx(numeric, rel=1e-5)
    warm = edge_of_stability(lambda: net(x), params, y, lr=0.1, iterations=1, start=found.vector)
    assert float(warm.eigenvalue) == pytest.approx(largest(w), rel=1e-9)
    with pytest.raises(ValueError, match="must have one shape"):
        edge_of_stability(lambda: net(x), params, y[:, :1], lr=0.1)
    assert all(p.grad is None for p in params.values())


def test_linear_nets_conv_nets_and_transformers() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).eval()
    former = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    for model, x in (
        (nn.Linear(4, 2), torch.randn(6, 4)),
        (conv, torch.randn(4, 1, 6, 6)),
        (former, torch.randn(2, 5, 8)),
    ):
        params = dict(model.named_parameters())
        found = edge_of_stability(lambda m=model, x=x: m(x), params, torch.zeros_like(model(x)), 0.1)  # type: ignore[misc]
        assert found.eigenvalue > 0
        assert found.rate.isfinite()
        assert (found.rate == 0) == isinstance(model, nn.Linear)
