"""What all tasks owe the engine: declared keys, one loss per sample, accumulation equal to the large batch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe, Task
from wellposed.diffusion.masked_diffusion import MaskedDiffusion
from wellposed.diffusion.min_snr import MinSNR
from wellposed.rl.exponential_smoothing import SmoothedIPS
from wellposed.tasks import (
    Autoencode,
    Autoencoder,
    Classify,
    Denoise,
    Discriminate,
    Generate,
    Likelihood,
    MaskedModel,
    NextToken,
    Policy,
    Prefer,
    Regress,
    Residual,
    TwoViews,
    laplacian,
)

B, T, V = 12, 5, 7


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None] / 10], 1))


class Same(nn.Module):
    """Every sample's representation from itself alone, so that a criterion may be per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Isotropic(nn.Module):
    """Log-density of a normal law with one variance, up to a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return (-((x - self.mean) / self.log_scale.exp()).square() / 2 - self.log_scale).sum(1)


@dataclass
class Case:
    model: nn.Module
    task: Task
    batch: dict[str, Any]


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(V, 8), nn.Tanh(), nn.Linear(8, V))


def uneven_mask() -> Tensor:
    """Sample i has 1 + i // 3 places, so that the cut into microbatches is uneven in places, too."""
    return torch.arange(T) < 1 + torch.arange(B)[:, None] // 3


def distance(z1: Tensor, z2: Tensor) -> Tensor:
    return (z1 - z2).square().sum(1)


def poisson(u: nn.Module, x: Tensor) -> Tensor:
    return -laplacian(u, x) - 1


def edge(u: nn.Module, x: Tensor) -> Tensor:
    return u(x).squeeze(-1)


def preferences(reference: bool) -> Case:
    model = language()
    ids = {"chosen": torch.randint(V, (B, T)), "rejected": torch.randint(V, (B, T))}
    masks = {"chosen_mask": uneven_mask(), "rejected_mask": uneven_mask().flip(0)}
    if reference:
        return Case(model, Prefer(language()), ids | masks)
    known = {"reference_chosen": -torch.rand(B), "reference_rejected": -torch.rand(B)}
    return Case(model, Prefer(label_smoothing=0.1), ids | masks | known)


def policy(*known: str, **settings: Any) -> Case:
    batch = {"ids": torch.randint(V, (B, T)), "mask": uneven_mask(), "advantage": torch.randn(B)}
    return Case(language(), Policy(**settings), batch | {key: -3 * torch.rand(B, T) for key in known})


def denoising(*args: Any, **kwargs: Any) -> Case:
    task = Denoise(*args, steps=10, **kwargs)
    return Case(Denoiser(), task, task.draw(torch.randn(B, 4)))


def masked_diffusion() -> Case:
    task = MaskedDiffusion(V - 1, pad_id=0)
    return Case(language(), task, task.draw(torch.randint(V - 1, (B, T))))


CASES: dict[str, Callable[[], Case]] = {
    "classify": lambda: Case(mlp(6, 3), Classify(3), {"x": torch.randn(B, 6), "y": torch.arange(B) % 3}),
    "regress": lambda: Case(mlp(6, 1), Regress("huber"), {"x": torch.randn(B, 6), "y": torch.randn(B)}),
    "next token": lambda: Case(
        language(),
        NextToken(V),
        {"x": torch.randint(V, (B, T)), "y": torch.randint(V, (B, T)).masked_fill(~uneven_mask(), -100)},
    ),
    "epsilon": lambda: denoising("epsilon"),
    "flow": lambda: denoising("velocity", "flow", weighting=MinSNR()),
    "two views": lambda: Case(Same(), TwoViews(distance), {"x1": torch.randn(B, 6), "x2": torch.randn(B, 6)}),
    "masked tokens": lambda: Case(
        language(),
        MaskedModel("token", classes=V),
        {"x": torch.randint(V, (B, T)), "y": torch.randint(V, (B, T)), "mask": uneven_mask()},
    ),
    "masked diffusion": masked_diffusion,
    "masked patches": lambda: Case(
        mlp(3, 3),
        MaskedModel("real"),
        {"x": torch.randn(B, T, 3), "y": torch.randn(B, T, 3), "mask": uneven_mask()},
    ),
    "autoencode": lambda: Case(Autoencoder(mlp(6, 2), mlp(2, 6)), Autoencode("absolute"), {"x": torch.randn(B, 6)}),
    "autoencode, denoising": lambda: Case(
        Autoencoder(mlp(6, 2), mlp(2, 6)), Autoencode(of="clean"), {"x": torch.randn(B, 6), "clean": torch.randn(B, 6)}
    ),
    "autoencode, variational": lambda: Case(  # in evaluation mode, where the code is not drawn
        Autoencoder(mlp(6, 4), mlp(2, 6), variational=True).eval(), Autoencode(beta=0.5), {"x": torch.randn(B, 6)}
    ),
    "prefer": lambda: preferences(reference=True),
    "prefer, precomputed": lambda: preferences(reference=False),
    "grpo": lambda: policy("sampled_log_probs"),
    "grpo, reference": lambda: policy("sampled_log_probs", kl=0.1, reference=language(), average="token"),
    "reinforce": lambda: policy("reference_log_probs", clip=None, kl=0.1, average="sum"),
    "discriminate": lambda: Case(mlp(6, 1), Discriminate(mlp(3, 6)), {"x": torch.randn(B, 6), "z": torch.randn(B, 3)}),
    "generate": lambda: Case(mlp(3, 6), Generate(mlp(6, 1)), {"x": torch.randn(B, 6), "z": torch.randn(B, 3)}),
    "likelihood": lambda: Case(Isotropic(), Likelihood(), {"x": torch.randn(B, 6)}),
    "smoothed propensities": lambda: Case(
        mlp(6, 3),
        SmoothedIPS(),
        {
            "x": torch.randn(B, 6),
            "action": torch.arange(B) % 3,
            "cost": -torch.rand(B),
            "propensity": 1 - torch.rand(B),
        },
    ),
    "residual": lambda: Case(
        mlp(1, 1), Residual(poisson, {"edge": (edge, 2.0)}), {"x": torch.rand(B, 1), "edge": torch.rand(B // 3, 1)}
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    made = CASES[request.param]()
    for model in (made.model, *vars(made.task).values()):  # a task may hold another player, or a reference
        if isinstance(model, nn.Module):
            model.double()
    made.batch = {k: v.double() if v.is_floating_point() else v for k, v in made.batch.items()}
    return made


def gradient(case: Case, window: Any) -> Tensor:
    model = deepcopy(case.model)
    recipe = Recipe().attach(model, case.task)
    recipe.step(window, torch.optim.SGD(model.parameters(), lr=0.0))
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def cut(batch: dict[str, Tensor], at: int) -> list[dict[str, Tensor]]:
    """The samples before and from ``at``; entries of another length are cut in the same proportion."""
    left = {k: v[: at * len(v) // B] for k, v in batch.items()}
    return [left, {k: v[at * len(v) // B :] for k, v in batch.items()}]


@pytest.mark.parametrize("at", [3, 6, 9])
def test_microbatches_of_unequal_size_equal_the_large_batch(case: Case, at: int) -> None:
    torch.testing.assert_close(gradient(case, cut(case.batch, at)), gradient(case, case.batch), rtol=0, atol=1e-14)


def test_forward_and_loss_keep_what_they_declare(case: Case) -> None:
    out = case.task.forward(case.model, case.batch)
    assert set(out) == set(case.task.yields)
    assert set(case.batch) == set(case.task.reads)
    rows = case.task.loss(out, case.batch)
    assert rows.shape == (B,)
    weight = case.task.weight(case.batch)
    w = torch.ones(B) if weight is None else weight
    assert w.shape == (B,)
    torch.testing.assert_close(case.task.mean_loss(out, case.batch), (rows * w).sum() / w.sum())


def test_the_loss_of_a_sample_depends_on_that_sample_only(case: Case) -> None:
    whole = case.task.loss(case.task.forward(case.model, case.batch), case.batch)
    part = {k: v[:4] if len(v) == B else v for k, v in case.batch.items()}  # boundary points belong to all samples
    torch.testing.assert_close(case.task.loss(case.task.forward(case.model, part), part), whole[:4])


def test_a_missing_key_is_named_when_the_recipe_is_attached(case: Case) -> None:
    key = case.task.reads[-1]
    example = {k: v for k, v in case.batch.items() if k != key}
    with pytest.raises(ValueError, match=f"needs '{key}'"):
        Recipe().attach(case.model, case.task, example=example)
