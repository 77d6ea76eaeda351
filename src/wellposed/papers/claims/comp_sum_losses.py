"""Comp-sum losses, Mao, Mohri, Zhong 2023."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...objectives.comp_sum import comp_sum_loss, h_consistency_bound
from ..claim import Claim
from ..mutation import Mutation, negated

TAUS = (0.0, 0.5, 1.0, 1.5, 1.7, 2.0, 2.5)


def conditional_loss(logits: Tensor, p: Tensor, tau: float) -> Tensor:
    """Expected loss (...) of scores (..., n) where the classes have probabilities p (..., n)."""
    return comp_sum_loss(logits, p, tau)


def best_logits(p: Tensor, tau: float) -> Tensor:
    """Scores of least expected loss: softmax proportional to p^(1 / (2 - tau)), or all on the likeliest class."""
    if tau < 2:
        return p.log() / (2 - tau)
    return 700.0 * F.one_hot(p.argmax(-1), p.shape[-1]).to(p)


def excess(logits: Tensor, p: Tensor, tau: float) -> Tensor:
    """Expected loss above the least possible one, (...)."""
    return (conditional_loss(logits, p, tau) - conditional_loss(best_logits(p, tau), p, tau)).clamp(min=0)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Gradients, the bound on 1000 random problems for each tau and n, and its tightness for two classes."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 5, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.randint(5, (200,), generator=g)
    p_true = F.softmax(logits, -1).gather(1, y[:, None]).detach()
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    gradient = violation = slack = 0.0
    for tau in TAUS:
        (found,) = torch.autograd.grad(comp_sum_loss(logits, y, tau).sum(), logits)
        gradient = max(gradient, float(((found - p_true ** (tau - 1) * plain) / found.abs().amax()).abs().max()))
        for n in (2, 3, 5, 10):
            p = F.softmax(2 * torch.randn(1000, n, generator=g, dtype=torch.float64), -1)
            scores = 2 * torch.randn(1000, n, generator=g, dtype=torch.float64)
            wrong = p.amax(-1) - p.gather(1, scores.argmax(-1, keepdim=True))[:, 0]
            bound = h_consistency_bound(excess(scores, p, tau), tau, n)
            violation = max(violation, float((wrong - bound).max()))
        if tau <= 1:  # undecided scores name the less likely class of two: the bound is reached
            e = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
            p = torch.stack([(1 - e) / 2, (1 + e) / 2], -1)
            reached = h_consistency_bound(excess(torch.zeros_like(p), p, tau), tau, 2)
            slack = max(slack, float((reached - e).abs().max()))
    return {
        "errors": {
            "gradient / largest": gradient,
            "bound exceeded by": max(violation, 0.0),
            "bound not reached by": slack,
        }
    }


CLAIM = Claim(
    paper="comp-sum-losses",
    statement="For every tau the excess 0-1 error is at most the stated function of the excess comp-sum loss, a bound "
    "that two classes reach for tau <= 1; the loss's gradient is that of the cross-entropy times p^(tau - 1).",
    arena="closed form; tau in 0 to 2.5, 2 to 10 classes, 1000 random problems each, float64",
    quantity="error",
    kind="exact",
    tolerance=1e-9,
    run=run,
    mutation=Mutation(
        words="the sign of the loss turned round",
        target="wellposed.objectives.comp_sum:comp_sum_loss",
        by=negated,
    ),
)
