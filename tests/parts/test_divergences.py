"""Divergences against sums written out, torch.distributions and numerical integrals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

from wellposed.parts import divergences as d


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


P, Q = rand(3, 4).softmax(-1), rand(3, 4, seed=1).softmax(-1)

BY_HAND: dict[d.Name, Callable[[float, float], float]] = {
    "kl": lambda p, q: p * math.log(p / q),
    "reverse-kl": lambda p, q: q * math.log(q / p),
    "js": lambda p, q: p / 2 * math.log(2 * p / (p + q)) + q / 2 * math.log(2 * q / (p + q)),
    "chi2": lambda p, q: (p - q) ** 2 / q,
    "hellinger": lambda p, q: (math.sqrt(p) - math.sqrt(q)) ** 2 / 2,
    "tv": lambda p, q: abs(p - q) / 2,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_f_divergences_against_their_sums(name: d.Name) -> None:
    expected = [
        sum(BY_HAND[name](float(a), float(b)) for a, b in zip(p, q, strict=True)) for p, q in zip(P, Q, strict=True)
    ]
    np.testing.assert_allclose(d.f_divergence(P, Q, name), expected, rtol=1e-12)
    assert d.f_divergence(P, P, name).abs().max() < 1e-15
    logits = (rand(2, 3).requires_grad_(), rand(2, 3, seed=5).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: d.f_divergence(a.softmax(-1), b.softmax(-1), name), logits)


def test_where_a_law_has_no_mass() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    found = {name: float(d.f_divergence(p, q, name)) for name in BY_HAND}
    assert found["kl"] == found["reverse-kl"] == found["chi2"] == math.inf
    assert found["hellinger"] == pytest.approx(0.5, rel=1e-6)
    assert found["tv"] == 0.5
    assert found["js"] == pytest.approx(math.log(2) / 2, rel=1e-6)
    apart = torch.tensor([0.0, 1.0, 0.0])
    assert float(d.js(apart, torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(math.log(2), rel=1e-6)
    assert d.cauchy_schwarz(apart, torch.tensor([1.0, 0.0, 0.0])) == math.inf
    assert float(d.f_divergence(p, q, lambda t: (t - 1).abs() / 2, slope=0.5)) == 0.5
    sure = torch.tensor([0.0, 200.0]).requires_grad_()  # a softmax that underflows
    d.kl(sure.softmax(-1), torch.tensor([0.5, 0.5])).backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("name", BY_HAND)
def test_sure_laws_in_float32(name: d.Name) -> None:
    """Softmaxes of logits 92 apart: the ratio of their probabilities is more than the largest number."""
    p, q = torch.tensor([0.0, -92.0]).softmax(-1), torch.tensor([-92.0, 0.0]).softmax(-1)
    expected = d.f_divergence(p.double(), q.double(), name).float()  # that of chi2 is too large for float32
    torch.testing.assert_close(d.f_divergence(p, q, name), expected, rtol=1e-6, atol=0)
    wanted = {"kl": 92, "reverse-kl": 92, "js": math.log(2), "hellinger": 1, "tv": 1}
    assert name == "chi2" or float(expected) == pytest.approx(wanted[name], rel=1e-6)


def test_nan_stays_nan() -> None:
    """In either law, also beside a 0 of the other."""
    good = torch.tensor([0.5, 0.5, 0.0])
    for place in (0, 2):
        bad = good.clone()
        bad[place] = math.nan
        for pair in ((good, bad), (bad, good)):
            for name in BY_HAND:
                assert d.f_divergence(*pair, name).isnan(), (place, name)
            assert d.f_divergence(*pair, lambda t: (t - 1).square()).isnan()
    assert d.renyi(torch.tensor([math.nan, 0.5]), torch.tensor([0.5, 0.5]), 0.5).isnan()
    assert d.renyi(torch.tensor([0.5, 0.5]), torch.tensor([math.nan, 0.5]), 2).isnan()


def test_gradients_are_finite_where_both_laws_are_0() -> None:
    for f in (*BY_HAND, lambda t: (t - 1).square()):
        p, q = (torch.tensor([a, 1 - a, 0.0]).requires_grad_() for a in (0.3, 0.6))
        d.f_divergence(p, q, f).backward()  # type: ignore[no-untyped-call]
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.isfinite().all()
        assert q.grad.isfinite().all()


def test_logits() -> None:
    a, b = rand(3, 4), rand(3, 4, seed=1)
    reference = kl_divergence(Categorical(logits=a), Categorical(logits=b))
    torch.testing.assert_close(d.kl_of_logits(a, b), reference)
    torch.testing.assert_close(d.js_of_logits(a, b), d.js(a.softmax(-1), b.softmax(-1)))
    assert d.kl_of_logits(torch.tensor([0.0, 500.0]), torch.tensor([500.0, 0.0])) == 500


def test_renyi_and_cauchy_schwarz() -> None:
    np.testing.assert_allclose(d.renyi(P, Q, 2), (P**2 / Q).sum(-1).log(), rtol=1e-12)
    np.testing.assert_allclose(d.renyi(P, Q, 0.5), -2 * (P * Q).sqrt().sum(-1).log(), rtol=1e-12)
    np.testing.assert_allclose(d.renyi(P, Q, 1 + 1e-7), d.kl(P, Q), rtol=1e-6)
    cosine = (P * Q).sum(-1) / (P.norm(dim=-1) * Q.norm(dim=-1))
    np.testing.assert_allclose(d.cauchy_schwarz(P, Q), -2 * cosine.log(), rtol=1e-12)
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.0, 0.5])
    assert d.renyi(p, q, 2) == math.inf
    assert float(d.renyi(p, q, 0.5)) == pytest.approx(2 * math.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="order must be above 0, got 0"):
        d.renyi(P, Q, 0)
    with pytest.raises(ValueError, match="must be a function or one of kl, reverse-kl"):
        d.f_divergence(P, Q, "kullback")  # type: ignore[arg-type]


def gaussians(n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b = rand(2, n, n, seed=2), rand(2, n, n, seed=3)
    eye = torch.eye(n, dtype=torch.float64)
    return rand(2, n), a @ a.mT + eye, rand(2, n, seed=1), b @ b.mT + eye


def test_gaussians_against_torch() -> None:
    mp, cp, mq, cq = gaussians()
    p, q = MultivariateNormal(mp, cp), MultivariateNormal(mq, cq)
    torch.testing.assert_close(d.gaussian_kl(mp, cp, mq, cq), kl_divergence(p, q))
    torch.testing.assert_close(d.gaussian_entropy(cp), p.entropy())  # type: ignore[no-untyped-call]
    leaves = [t.requires_grad_() for t in (mp, cp, mq, cq)]
    assert torch.autograd.gradcheck(lambda m, c, n, e: d.gaussian_kl(m, c @ c.mT, n, e @ e.mT), leaves)


@pytest.mark.parametrize("order", [0.5, 1.0, 1.5])
def test_gaussians_against_integrals(order: float) -> None:
    p, q = stats.norm(0.3, 0.8), stats.norm(-0.5, 1.1)
    mp, cp, mq, cq = (torch.tensor(v, dtype=torch.float64) for v in ([0.3], [[0.64]], [-0.5], [[1.21]]))

    def integral(of: Callable[[float], float]) -> float:
        return float(integrate.quad(of, -15, 15, epsabs=1e-12)[0])

    if order == 1:
        expected = integral(lambda t: p.pdf(t) * (p.logpdf(t) - q.logpdf(t)))
    else:
        expected = math.log(integral(lambda t: p.pdf(t) ** order * q.pdf(t) ** (1 - order))) / (order - 1)
    assert float(d.gaussian_renyi(mp, cp, mq, cq, order)) == pytest.approx(expected, rel=1e-8)
    pq, pp = integral(lambda t: p.pdf(t) * q.pdf(t)), integral(lambda t: p.pdf(t) ** 2)
    qq = integral(lambda t: q.pdf(t) ** 2)
    assert float(d.gaussian_cauchy_schwarz(mp, cp, mq, cq)) == pytest.approx(-math.log(pq**2 / (pp * qq)), rel=1e-8)


def test_an_infinite_renyi_divergence() -> None:
    """Order 3 of N(0, 4) from N(0, 1): the integral of p^3 / q^2 does not exist."""
    zero, wide, one = torch.zeros(1), torch.full((1, 1), 4.0), torch.ones(1, 1)
    assert d.gaussian_renyi(zero, wide, zero, one, 3.0) == math.inf
    with pytest.raises(ValueError, match="order must be above 0"):
        d.gaussian_renyi(zero, wide, zero, one, 0.0)


def test_cauchy_schwarz_is_at_most_kl_for_gaussians() -> None:
    mp, cp, mq, cq = gaussians()
    assert (d.gaussian_cauchy_schwarz(mp, cp, mq, cq) <= d.gaussian_kl(mp, cp, mq, cq)).all()
