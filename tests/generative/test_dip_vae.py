"""DIP-VAE and the SAP score."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise, product

import pytest
import torch
from autoencoders import KINDS, build, trained
from torch import Tensor, nn

import wellposed as wp
from wellposed.generative.dip_vae import DIPVAE, dip_penalty, sap_matrix, sap_score


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(mean: Tensor, log_variance: Tensor | None, off: float, on: float) -> float:
    """The penalty as public implementations state it: E z z^T - E z E z^T, entry by entry."""
    rows, width = mean.shape
    total = 0.0
    for i, j in product(range(width), repeat=2):
        c = sum(float(r[i] * r[j]) for r in mean) / rows - float(mean[:, i].mean() * mean[:, j].mean())
        if i == j and log_variance is not None:
            c += sum(float(v.exp()) for v in log_variance[:, i]) / rows
        total += on * (c - 1) ** 2 if i == j else off * c**2
    return total


def test_value_by_explicit_loops() -> None:
    mean, log_variance = draw(7, 3), draw(7, 3, seed=1)
    assert 2 * dip_penalty(mean, diagonal=5.0).item() == pytest.approx(by_loops(mean, None, 2, 10), rel=1e-11)
    both = dip_penalty(mean, log_variance, 1.0)
    assert both.item() == pytest.approx(by_loops(mean, log_variance, 1, 1), rel=1e-11)


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_weights_of_each_type(kind: str) -> None:
    """Type I weighs variances ten times, type II as much as covariances."""
    mean, log_variance = draw(7, 3), draw(7, 3, seed=1)
    expected = by_loops(mean, None, 10, 100) if kind == "i" else by_loops(mean, log_variance, 10, 10)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(mean.clone())

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"reconstruction": x + 0 * self.mean, "code": self.mean, "mean": self.mean, "log_variance": x}

    recipe = wp.Recipe(method := DIPVAE(kind=kind)).attach(model := Fixed(), wp.Autoencode(beta=0.0))  # type: ignore[arg-type]
    terms = recipe.step({"x": log_variance}, torch.optim.SGD(model.parameters(), lr=0.0))
    assert terms[recipe.name_of(method)].item() == pytest.approx(expected, rel=1e-11)


def test_gradient() -> None:
    mean, log_variance = draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: dip_penalty(m), (mean,))
    assert torch.autograd.gradcheck(dip_penalty, (mean, log_variance))


def test_white_codes_cost_nothing() -> None:
    white = torch.linalg.qr(draw(9, 3) - draw(9, 3).mean(0)).Q * 3
    assert dip_penalty(white) < 1e-26
    half = white / 2**0.5
    assert dip_penalty(half, torch.full_like(half, 0.5).log()) < 1e-26


@pytest.mark.parametrize("kind", ["i", "ii"])
@pytest.mark.parametrize("net", KINDS)
def test_codes_become_white(net: str, kind: str) -> None:
    terms = [
        trained(*build(net, variational=True), DIPVAE(kind=kind, strength=s), beta=0.1)[-1]["DIPVAE"] / s  # type: ignore[arg-type]
        for s in (1e-6, 10.0)
    ]
    assert terms[1] < 0.2 * terms[0]


# ---- the score
def by_intervals(values: list[float], labels: list[int]) -> float:
    """Every way to cut sorted values between different ones into K intervals, and to name each by one class."""
    classes = sorted(set(labels))
    order = sorted(range(len(values)), key=lambda i: values[i])
    x, y = [values[i] for i in order], [labels[i] for i in order]
    allowed = [0, len(x)] + [m for m in range(1, len(x)) if x[m - 1] < x[m]]
    best = 0.0
    for cuts in combinations_with_replacement(sorted(allowed), len(classes) - 1):
        edges = [0, *cuts, len(x)]
        for names in product(classes, repeat=len(classes)):
            named = zip(pairwise(edges), names, strict=True)
            right = [y[m] == name for (a, b), name in named for m in range(a, b)]
            recalls = [sum(r for r, c in zip(right, y, strict=True) if c == k) / y.count(k) for k in classes]
            best = max(best, sum(recalls) / len(classes))
    return best


def test_score_of_reals_is_the_squared_correlation() -> None:
    code, factors = draw(30, 4), draw(30, 2, seed=1)
    expected = torch.corrcoef(torch.cat([code, factors], 1).T)[:4, 4:].square()
    torch.testing.assert_close(sap_matrix(code, factors), expected)
    top = expected.sort(0, descending=True).values
    torch.testing.assert_close(sap_score(code, factors), (top[0] - top[1]).mean())


@pytest.mark.parametrize("classes", [2, 3])
def test_score_of_classes_is_the_best_of_all_thresholds(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    code = torch.randint(5, (9, 3), generator=g).double()  # with ties
    label = torch.cat([torch.arange(classes), torch.randint(classes, (9 - classes,), generator=g)])
    expected = [by_intervals(code[:, i].tolist(), label.tolist()) for i in range(3)]
    assert sap_matrix(code, label[:, None], True)[:, 0].tolist() == pytest.approx(expected, rel=1e-12)


def test_score_tells_separated_from_rotated() -> None:
    factors = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    noise = 0.01 * draw(2000, 1)
    assert sap_score(factors, factors) > 0.99
    assert sap_score(factors @ turn, factors) < 0.1
    assert sap_score(torch.cat([factors, factors + noise], 1), factors) < 0.01  # held twice
    classes = (factors * 3).long()
    assert sap_score(factors, classes, True) > 0.5
    mixed = torch.cat([factors, classes.double()], 1)
    assert sap_score(torch.cat([factors, noise], 1), mixed, [False, False, True, True]) > 0.7


def test_inactive_coordinates_score_nothing() -> None:
    factors = draw(20, 1)
    code = torch.cat([factors, 1e-8 * factors, torch.ones(20, 1)], 1)
    found = sap_matrix(code, torch.cat([factors, (factors > 0).double()], 1), [False, True])
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="kind must be 'i' or 'ii'"):
        DIPVAE(kind="iii")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="diagonal must be at least 0"):
        DIPVAE(diagonal=-1.0)
    with pytest.raises(wp.RecipeError, match="DIPVAE needs 'log_variance'"):
        wp.Recipe(DIPVAE()).attach(wp.Autoencoder(nn.Linear(4, 2), nn.Linear(2, 4)), wp.Autoencode())
    with pytest.raises(ValueError, match="a covariance needs at least 2 codes"):
        dip_penalty(draw(1, 3))
    with pytest.raises(ValueError, match=r"codes \(N, d\) and factors \(N, F\)"):
        sap_score(draw(5, 2), draw(5))
    with pytest.raises(ValueError, match="discrete has 1 entries for 2 factors"):
        sap_score(draw(5, 2), draw(5, 2), [True])
    with pytest.raises(ValueError, match="factor 1 has one value only"):
        sap_score(draw(5, 2), torch.cat([draw(5, 1), torch.ones(5, 1)], 1))
    with pytest.raises(ValueError, match="the codes have one"):
        sap_score(draw(5, 1), draw(5, 2))
