"""Mixup whose ratios are learned, so that mixtures do not land on real samples of other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.schedules import Scalar
from ._mixing import TARGETS, real_targets, require_classes

__all__ = ["AdaMixUp", "intrusion_rate", "policy_shares"]


def policy_shares(logits: Tensor, u: Tensor) -> Tensor:
    """Shares from intervals chosen by a policy.

    Args:
        logits: (B, 3); their softmax is the interval's lower end, its length, and the rest.
        u: uniform on [0, 1], (B,).

    Returns:
        lower end + length * u, in (0, 1), shape (B,); Guo, Mao, Zhang 2019 (arXiv 1809.02499), section 4.
    """
    low, length, _ = F.softmax(logits, -1).unbind(-1)
    return low + length * u


@torch.no_grad()
def intrusion_rate(mixed: Tensor, labels: Tensor, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Share of mixtures that collide with data: whose nearest sample is closer than ``radius`` and of another class.

    Args:
        mixed: mixtures of two samples of one class, (M, ...).
        labels: that class, (M,).
        x, y: the data, (N, ...) and (N,).
        radius: in units of the input.

    Returns:
        scalar in [0, 1].
    """
    distance, nearest = torch.cdist(mixed.flatten(1), x.flatten(1)).min(1)
    return ((distance < radius) & (y[nearest] != labels)).float().mean()


class AdaMixUp(Method, paper="adamixup"):
    r"""Adaptive mixup: a small policy learns which ratios suit a pair, and a critic keeps mixtures off the data.

    Computes:
        The task's loss on the batch, and strength times (its loss on mixtures g x_i + (1 - g) x_j with targets mixed
        alike, and the loss of a critic that tells mixtures from samples). g = a + d u with u uniform and a, d from a
        softmax over three outputs of a policy that sees both samples. Policy and critic descend the same sum, by an
        Adam of their own.

    Formula:
        \ell(x, y) + \eta \left( \ell(\tilde{x}, \tilde{y}) - \log \varphi(\tilde{x}) - \log (1 - \varphi(x)) \right)
        \tilde{x} = g x_i + (1 - g) x_j, \quad g = a + d u, \quad (a, d, 1 - a - d) = \pi(x_i, x_j)

    Helps:
        Where classes lie between each other, so that a mixture of two samples of a class can look like another class.

    Avoid:
        Expecting strong mixing: where the pairs are easy the policy keeps mixtures near one of the samples. Its
        accuracy was that of plain training where mixup's is worse. Inputs of many thousand values, which policy and
        critic, with a single hidden layer, see as they are.

    Defaults:
        strength 1, the paper's sum; 32 hidden units and rate 0.003, our choice.

    Cost:
        2 passes; two small nets on flattened inputs.

    Reference:
        Guo, Mao, Zhang 2019, MixUp as Locally Linear Out-Of-Manifold Regularization, arXiv 1809.02499, section 4. There
        the critic shares the classifier's layers; here it is a net of its own, so that any model will do.

    Args:
        width: number of values in one input.
        hidden: units of the policy's and the critic's hidden layer.
        rate: of their Adam.
        strength: factor of what mixtures add.
    """

    reads = ("x", "y")
    targets = TARGETS
    exact = False  # every microbatch draws its own pairs
    example = {"width": 6}

    width: int = knob(low=1)
    hidden: int = knob(32, low=1)
    rate: float = knob(0.003, above=0.0)
    strength: Scalar = knob(1.0, low=0.0, grid=(0.3, 1.0, 3.0))

    def setup(self, model: nn.Module, task: Task) -> None:
        require_classes(self, task)
        like = next(model.parameters())
        g = torch.Generator().manual_seed(0)
        self.policy = _net(2 * self.width, self.hidden, 3, g).to(like)
        self.critic = _net(self.width, self.hidden, 1, g).to(like)
        size = sum(p.numel() for p in self._own())
        self.moments = nn.Buffer(torch.zeros(2, size, device=like.device, dtype=like.dtype))
        self.register_buffer("updates", torch.zeros((), device=like.device))
        self.updates: Tensor

    def mix(self, x: Tensor, y: Tensor, partner: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures of rows and of their real targets, differentiable in the policy.

        Args:
            x, y: (B, ...).
            partner: index of each row's partner, (B,).
            u: uniform on [0, 1], (B,).
        """
        pairs = torch.cat([x.flatten(1), x[partner].flatten(1)], 1)
        share = policy_shares(self.policy(pairs.to(self.moments.dtype)), u.to(self.moments.dtype)).to(x.dtype)
        return tuple(torch.lerp(v[partner], v, share.view(-1, *[1] * (v.ndim - 1)).to(v.dtype)) for v in (x, y))  # type: ignore[return-value]

    def penalty(self, step: Step) -> Tensor:
        if step.micro == 0:
            for p in self._own():
                p.grad = None
        x = step.batch["x"]
        if not torch.is_floating_point(x):
            raise TypeError(f"AdaMixUp mixes real inputs, but x holds {x.dtype}; mix embeddings instead")
        if x[0].numel() != self.width:
            raise ValueError(f"AdaMixUp: an input has {x[0].numel()} values, width says {self.width}")
        y, g = real_targets(step.batch["y"], x, step.task), step.rng(self)
        partner = torch.randperm(len(x), generator=g, device=x.device)
        moved, target = self.mix(x, y, partner, torch.rand(len(x), generator=g, device=x.device))
        # Not through a compiled wrapper, which warns of inputs that carry a graph.
        out = step.forward(step.model, x=moved, y=target)
        loss = step.task.loss(out, {**step.batch, "x": moved, "y": target})
        # -log critic(mixture) - log(1 - critic(sample)), of logits
        told = F.softplus(-self._judged(moved)) + F.softplus(self._judged(x))
        return loss + told.to(loss.dtype)

    def _judged(self, x: Tensor) -> Tensor:
        found: Tensor = self.critic(x.flatten(1).to(self.moments.dtype))
        return found.squeeze(1)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Adam of the policy and the critic, on the mean gradient of all ranks."""
        own = self._own()
        if any(p.grad is None for p in own):
            return
        grad = torch.cat([p.grad.flatten() for p in own if p.grad is not None])
        if step.recipe.scaler:
            grad = grad / step.recipe.scaler.get_scale()
        grad = step.gather(grad[None]).mean(0)
        self.updates += 1
        first, second = self.moments
        first.lerp_(grad, 0.1)
        second.lerp_(grad.square(), 0.001)
        fade = 1 - torch.tensor([0.9, 0.999], device=grad.device, dtype=grad.dtype) ** self.updates
        change = first / fade[0] / ((second / fade[1]).sqrt() + 1e-8)
        pieces = torch.split(change, [p.numel() for p in own])
        torch._foreach_add_(own, [c.view_as(p) for c, p in zip(pieces, own, strict=True)], alpha=-self.rate)

    def _own(self) -> list[Tensor]:
        return [*self.policy.parameters(), *self.critic.parameters()]

    def passes(self) -> float:
        return 2.0 if self.strength else 1.0


def _net(inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """One hidden layer, drawn as ``nn.Linear`` is, from this generator."""
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
        first, last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    with torch.no_grad():
        for layer in (first, last):
            bound = layer.in_features**-0.5
            for p in (layer.weight, layer.bias):
                p.uniform_(-bound, bound, generator=generator)
    return nn.Sequential(first, nn.ReLU(), last)
