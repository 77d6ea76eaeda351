"""I-Con: the losses it is said to contain, by their own formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pairs import fitted, views
from torch import Tensor

from wellposed.selfsup import i_con as ic
from wellposed.selfsup.i_con import icon_loss, icon_views
from wellposed.tasks import nt_xent


def z(rows: int = 9, width: int = 3) -> Tensor:
    return views(rows, width)[0]


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(1)


def off_diagonal(n: int) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool)


def test_divergence_by_explicit_loops() -> None:
    p, q = torch.rand(2, 4, 5, dtype=torch.float64)
    p[0, 2] = 0
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    found = icon_loss(p, q.log()).tolist()
    for i in range(4):
        terms = [float(p[i, j]) * math.log(float(p[i, j] / q[i, j])) for j in range(5) if p[i, j]]
        assert found[i] == pytest.approx(sum(terms), rel=1e-12)
    assert icon_loss(p, p.log()).abs().max() < 1e-15


def test_info_nce() -> None:
    torch.testing.assert_close(icon_views(*views(), 0.2), nt_xent(*views(), 0.2), rtol=1e-12, atol=0)


def test_supervised_contrast() -> None:
    """Khosla et al. 2020 (arXiv 2004.11362), Eq. 2: minus the mean log-probability of the others of one's class."""
    x, y = F.normalize(z()), torch.arange(9) % 3
    found = icon_loss(ic.label_neighbours(y), ic.cosine_neighbours(x, 0.3)) + entropy(ic.label_neighbours(y))
    for i in range(9):
        chance = torch.stack([(x[i] @ x[j] / 0.3).exp() for j in range(9) if j != i]).sum()
        logs = [((x[i] @ x[j] / 0.3).exp() / chance).log() for j in range(9) if j != i and y[j] == y[i]]
        assert found[i].item() == pytest.approx(-float(torch.stack(logs).mean()), rel=1e-6)


def test_cross_entropy() -> None:
    logits, y = z(9, 4), torch.arange(9) % 4
    given = F.one_hot(y, 4).double()
    torch.testing.assert_close(icon_loss(given, logits.log_softmax(1)), F.cross_entropy(logits, y, reduction="none"))


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


def kernel(x: Tensor) -> Tensor:
    """A symmetric kernel, normalised over all pairs."""
    k = torch.exp(-torch.cdist(x, x).square()) * off_diagonal(len(x))
    return k / k.sum()


def test_sne() -> None:
    """Hinton, Roweis 2002: the slope is 2 sum_j (y_i - y_j)(p_j|i - q_j|i + p_i|j - q_i|j), for sigma^2 = 1/2."""
    given = kernel(z()) / kernel(z()).sum(1, keepdim=True)
    y = views(9, 2, seed=1)[0].requires_grad_()
    log_q = ic.gaussian_neighbours(y, 0.5**0.5)
    gap = given - log_q.exp()
    expected = 2 * ((gap + gap.T)[..., None] * (y[:, None] - y)).sum(1)
    torch.testing.assert_close(gradient(icon_loss(given, log_q).sum(), y), expected.detach(), rtol=1e-9, atol=1e-12)


def test_t_sne_is_the_joint_form_only() -> None:
    """van der Maaten, Hinton 2008: the slope is 4 sum_j (p_ij - q_ij)(y_i - y_j) / (1 + |y_i - y_j|^2)."""
    given = kernel(z())
    y = views(9, 2, seed=1)[0].requires_grad_()
    log_q = ic.student_neighbours(y, joint=True)
    step = y[:, None] - y
    expected = 4 * ((given - log_q.exp())[..., None] * step / (1 + step.square().sum(-1, keepdim=True))).sum(1)
    torch.testing.assert_close(gradient(icon_loss(given, log_q).sum(), y), expected.detach(), rtol=1e-9, atol=1e-12)
    by_row = icon_loss(given / given.sum(1, keepdim=True), ic.student_neighbours(y)).mean()
    assert (gradient(by_row, y) - expected).abs().max() > 1e-3


def test_learned_distributions_sum_to_one() -> None:
    phi = z(9, 4).softmax(1)
    rows = (
        ic.gaussian_neighbours(z()),
        ic.student_neighbours(z()),
        ic.cosine_neighbours(z()),
        ic.cluster_neighbours(phi),
    )
    for log_q in rows:
        torch.testing.assert_close(log_q.exp().sum(1), torch.ones(9).double(), rtol=1e-12, atol=0)
    assert ic.student_neighbours(z(), joint=True).exp().sum().item() == pytest.approx(1, rel=1e-12)


def test_certain_clusters() -> None:
    y = torch.tensor([0, 0, 1, 0, 1])
    q = ic.cluster_neighbours(F.one_hot(y).double()).exp()
    sizes = torch.tensor([3.0, 2.0]).double()[y]
    torch.testing.assert_close(q, (y[:, None] == y) / sizes[:, None], rtol=1e-12, atol=1e-12)


def test_given_distributions() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    p = ic.graph_neighbours(x, 2)
    assert torch.equal(p > 0, torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]]).bool())
    torch.testing.assert_close(ic.walked(p, 3), (p + p @ p + p @ p @ p) / 3)
    torch.testing.assert_close(ic.debiased(p, 0.4), 0.6 * p + 0.1)
    apart = ic.debiased(p, 1.0, off_diagonal(4))
    torch.testing.assert_close(apart, off_diagonal(4) / 3)
    assert torch.equal(ic.label_neighbours(torch.tensor([0, 1, 0]))[1], torch.zeros(3))  # alone with its label
    with pytest.raises(ValueError, match="share must be 0 to 1, got 2"):
        ic.debiased(p, 2)


@pytest.mark.parametrize("debias", [0.0, 0.4])
def test_gradient(debias: float) -> None:
    assert torch.autograd.gradcheck(partial(icon_views, debias=debias), [v.requires_grad_() for v in views(4, 3)])
    p = ic.debiased(ic.graph_neighbours(z().double(), 3).double(), debias, off_diagonal(9))
    for learned in (ic.gaussian_neighbours, ic.student_neighbours, ic.cosine_neighbours):
        assert torch.autograd.gradcheck(lambda x, q=learned: icon_loss(p, q(x)), z().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: icon_loss(p, ic.cluster_neighbours(x.softmax(1))), z().requires_grad_())


def test_half_precision_is_computed_in_float32() -> None:
    z1, z2 = (v.bfloat16() for v in views(16, 4))
    with torch.autocast("cpu", torch.bfloat16):
        found = icon_views(z1, z2, debias=0.1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), icon_views(z1.double(), z2.double(), debias=0.1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    losses = fitted(partial(icon_views, debias=0.2), kind)
    assert losses[-1] < 0.8 * losses[0]  # cosines cannot make q as sure as p: 0 is out of reach
