"""Curvature against full Hessians, on nets that were not made for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wellposed.parts import curvature as cv

Net = tuple[dict[str, Tensor], Callable[[], Tensor]]


def conv() -> Net:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = torch.randn(9, 1, 4, 4).double(), torch.arange(9) % 3
    params: dict[str, Tensor] = dict(model.named_parameters())
    return params, lambda: F.cross_entropy(model(x), y)


class Tied(nn.Module):
    """A transformer whose output weights are its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def transformer() -> Net:
    torch.manual_seed(0)
    model = Tied().double()
    model.body.linear1.weight.requires_grad_(False)
    x = torch.randint(5, (4, 3))
    params: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return params, lambda: F.cross_entropy(model(x).flatten(0, 1), x.flatten())


def full(params: dict[str, Tensor], loss: Callable[[], Tensor]) -> Tensor:
    """The Hessian, row by row."""
    with sdpa_kernel(SDPBackend.MATH):
        grads = torch.autograd.grad(loss(), list(params.values()), create_graph=True)
    flat = torch.cat([g.flatten() for g in grads])
    rows = [torch.autograd.grad(g, list(params.values()), retain_graph=True) for g in flat]
    return torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])


def flat(v: cv.Vector) -> Tensor:
    return torch.cat([a.flatten() for a in v.values()])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(a: Tensor) -> cv.Operator:
    return lambda v: {"w": a @ v["w"]}


def symmetric(size: int) -> Tensor:
    a = torch.randn(size, size, generator=seeded(), dtype=torch.float64)
    return a + a.T


@pytest.mark.parametrize("net", [conv, transformer])
def test_products_are_those_of_the_full_hessian(net: Callable[[], Net]) -> None:
    params, loss = net()
    v = cv.gaussian(params, seeded())
    expected = full(params, loss) @ flat(v)
    for of in (loss, cv.gradient(loss, params)):
        found = cv.hvp(of, params, v)
        assert list(found) == list(params)
        torch.testing.assert_close(flat(found), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("net", [conv, transformer])
def test_lanczos_spans_the_spectrum(net: Callable[[], Net]) -> None:
    params, loss = net()
    true = torch.linalg.eigvalsh(full(params, loss))
    ritz = cv.lanczos(cv.hessian(loss, params), cv.gaussian(params, seeded()), 30)
    assert ritz.values[-1] == pytest.approx(float(true[-1]), rel=1e-8)
    nearest = (ritz.values[:, None] - true).abs().amin(1)
    assert (nearest <= ritz.residuals + 1e-10).all(), "the residual bounds the error"
    top = ritz.vector()
    torch.testing.assert_close(
        flat(cv.hvp(loss, params, top)),
        float(ritz.values[-1]) * flat(top),
        rtol=0,
        atol=float(ritz.residuals[-1]) + 1e-9,
    )


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    params = {"w": torch.randn(3, requires_grad=True), "unused": torch.randn(2, requires_grad=True)}
    product = cv.hvp(lambda: params["w"].sum(), params, cv.gaussian(params))
    assert all(torch.equal(p, torch.zeros_like(params[n])) for n, p in product.items())


def test_a_parameter_that_takes_no_part_has_zeros() -> None:
    params = {"w": torch.randn(3, requires_grad=True), "unused": torch.randn(2, requires_grad=True)}
    found = cv.hvp(lambda: params["w"].pow(3).sum(), params, {"w": torch.ones(3), "unused": torch.ones(2)})
    torch.testing.assert_close(found["w"], 6 * params["w"].detach())
    assert torch.equal(found["unused"], torch.zeros(2))
    part = cv.hvp(lambda: params["w"].pow(3).sum(), params, {"unused": torch.ones(2)})
    assert not flat(part).any()


def test_a_product_can_be_differentiated() -> None:
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    out = cv.hvp(lambda: w.pow(4).sum(), {"w": w}, {"w": torch.ones(2).double()}, create_graph=True)["w"]
    (third,) = torch.autograd.grad(out.sum(), w)
    torch.testing.assert_close(third, 24 * w.detach())


def test_mixed_dtypes() -> None:
    """A half-precision layer among float32 ones; inner products are taken in float32."""
    params = {"a": torch.ones(4, requires_grad=True), "b": torch.ones(4, dtype=torch.bfloat16, requires_grad=True)}
    loss = lambda: (params["a"] ** 2).sum() + 3 * (params["b"].float() ** 2).sum()  # noqa: E731
    found = cv.power_iteration(cv.hessian(loss, params), cv.gaussian(params, seeded()), 30)
    assert found.vector["b"].dtype == torch.bfloat16
    assert float(found.value) == pytest.approx(6.0, rel=0.02)  # bfloat16 has 8 bits
    assert [z.dtype for z in cv.rademacher(params).values()] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("sign", [1, -1])
def test_power_iteration_finds_the_largest_magnitude(sign: int) -> None:
    a = sign * torch.diag(torch.tensor([5.0, 2.0, -1.0], dtype=torch.float64))
    found = cv.power_iteration(matrix(a), {"w": torch.ones(3).double()}, 60)
    assert float(found.value) == pytest.approx(sign * 5.0, rel=1e-12)
    assert found.vector["w"].abs()[0] == pytest.approx(1.0)
    assert float(found.residual) < 1e-12


def test_residual_bounds_the_error_of_power_iteration() -> None:
    a = symmetric(8)
    true = torch.linalg.eigvalsh(a)
    for iterations in (1, 3, 10):
        found = cv.power_iteration(matrix(a), {"w": torch.ones(8).double()}, iterations)
        assert (true - found.value).abs().min() <= found.residual + 1e-12


def test_warm_start_is_one_long_iteration() -> None:
    a, start = symmetric(6), {"w": torch.ones(6).double()}
    long = cv.power_iteration(matrix(a), start, 7)
    state: dict[str, Tensor] = start
    for _ in range(7):
        found = cv.power_iteration(matrix(a), state)
        state = found.next
    torch.testing.assert_close(found.vector["w"], long.vector["w"], rtol=1e-12, atol=0)


def test_a_warm_start_survives_an_operator_that_is_zero_for_a_while() -> None:
    found = cv.power_iteration(matrix(torch.zeros(3, 3)), {"w": torch.ones(3)})
    assert float(found.value) == 0
    assert cv.power_iteration(matrix(torch.eye(3)), found.next).value == pytest.approx(1.0)


def test_lanczos_ends_at_an_invariant_subspace() -> None:
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))
    ritz = cv.lanczos(matrix(a), {"w": torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]).double()}, 5)
    torch.testing.assert_close(ritz.values, torch.tensor([1.0, 3.0, 5.0]).double(), rtol=1e-12, atol=0)
    torch.testing.assert_close(ritz.weights, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-12, atol=0)


def test_lanczos_weights_are_gauss_quadrature() -> None:
    """m points integrate polynomials up to degree 2 m - 1 exactly."""
    a, v = symmetric(12), torch.randn(12, generator=seeded(1), dtype=torch.float64)
    v = v / v.norm()
    ritz = cv.lanczos(matrix(a), {"w": v}, 3)
    power = v
    for degree in range(6):
        assert float((ritz.weights * ritz.values**degree).sum()) == pytest.approx(float(v @ power), rel=1e-10)
        power = a @ power


def test_no_ghost_eigenvalues() -> None:
    """Without reorthogonalisation 60 steps would find the isolated top value several times."""
    values = torch.cat([torch.linspace(0, 1, 79), torch.tensor([100.0])]).double()
    ritz = cv.lanczos(matrix(torch.diag(values)), {"w": torch.ones(80).double()}, 60)
    assert int((ritz.values > 50).sum()) == 1


def test_signs_are_signs_and_independent() -> None:
    z = cv.rademacher({"a": torch.empty(1000, 77), "b": torch.empty(13)}, seeded())
    assert set(flat(z).tolist()) == {-1.0, 1.0}
    assert z["b"].shape == (13,)
    count = z["a"].numel()
    assert abs(float(z["a"].mean())) < 5 / count**0.5
    bits = flat(z)[:76800].view(-1, 64)  # every column one bit of the 64-bit draws
    correlation = bits.T @ bits / len(bits) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / len(bits) ** 0.5  # 2016 pairs: chance of 4e-8 each
    assert torch.equal(flat(cv.rademacher({"a": torch.empty(100)}, seeded())), flat(z)[:100])


def test_hutchinson_trace() -> None:
    """Exact for a diagonal; else unbiased with variance 2 (||A||_F^2 - sum A_ii^2)."""
    exact = cv.hutchinson_trace(matrix(torch.diag(torch.arange(5.0))), {"w": torch.empty(5)}, 4)
    assert exact.tolist() == [10.0] * 4
    a, n = symmetric(6), 2000
    found = cv.hutchinson_trace(matrix(a), {"w": torch.empty(6).double()}, n, seeded())
    variance = float(2 * (a.square().sum() - a.diagonal().square().sum()))
    assert abs(float(found.mean() - a.trace())) < 4 * (variance / n) ** 0.5
    assert float(found.var()) == pytest.approx(variance, rel=0.2)


def test_hutchinson_diagonal() -> None:
    a, n = symmetric(6), 2000
    found = cv.hutchinson_diagonal(matrix(a), {"w": torch.empty(6).double()}, n, seeded())["w"]
    bound = ((a.square().sum(1) - a.diagonal().square()) / n).sqrt()
    assert ((found - a.diagonal()).abs() < 4.5 * bound).all()


def test_hutchinson_of_a_net() -> None:
    params, loss = conv()
    true = full(params, loss)
    operator = cv.hessian(loss, params)
    trace = cv.hutchinson_trace(operator, params, 100, seeded())
    assert abs(float(trace.mean() - true.trace())) < 4 * float(trace.std()) / 10
    diagonal = cv.hutchinson_diagonal(operator, params, 100, seeded())
    assert torch.corrcoef(torch.stack([flat(diagonal), true.diagonal()]))[0, 1] > 0.8
    assert not any(d.requires_grad for d in diagonal.values())


def test_bad_counts() -> None:
    v = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        cv.power_iteration(matrix(torch.eye(2)), v, 0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        cv.lanczos(matrix(torch.eye(2)), v, 0)
    with pytest.raises(ValueError, match="a start that is not zero"):
        cv.lanczos(matrix(torch.eye(2)), {"w": torch.zeros(2)}, 1)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        cv.hutchinson_trace(matrix(torch.eye(2)), v, 0)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        cv.hutchinson_diagonal(matrix(torch.eye(2)), v, 0)
