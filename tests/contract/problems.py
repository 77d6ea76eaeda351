"""The small problems on which the contract suite tries every technique."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.core.registry import catalogue
from wellposed.generative.latent_quantization import LatentQuantizer
from wellposed.science.neural_ode import NeuralODE

ROWS, CLASSES, VOCABULARY = 12, 3, 7
METHODS = [name for name, cls in catalogue().items() if cls.__module__.startswith("wellposed.")]


class Recurrent(nn.Module):
    """A recurrent classifier that reads (B, T, 4) and answers from the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.head(states[:, -1])


class Denoiser(nn.Module):
    """A denoising net of (x_t, t) with layers named like the classifier's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, t.to(x).view(-1, 1) / 100], 1))


class Twice(nn.Module):
    """A generator of samples of six numbers from three, in any dtype."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.square()], 1)


def build(kind: str, norm: bool) -> nn.Module:
    if kind in ("mlp", "normed", "regressor", "restorer", "views", "discriminator"):
        batch_norm = norm or kind == "normed"
        outputs = {"regressor": 1, "discriminator": 1, "restorer": 6}.get(kind, CLASSES)
        return nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16) if batch_norm else nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, outputs)
        )
    if kind == "conv":
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4) if norm else nn.GroupNorm(1, 4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(72, CLASSES),
        )
    if kind in ("autoencoder", "variational"):
        several = kind == "variational"
        encoder = nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.LayerNorm(16),
            nn.ReLU(),
            nn.Linear(16, 6 if several else 3),
        )
        return wp.Autoencoder(encoder, nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6)), several)
    if kind == "preference":
        return nn.Sequential(nn.Embedding(VOCABULARY, 8), nn.LayerNorm(8), nn.Linear(8, VOCABULARY))
    if kind == "quantized":
        normed = nn.BatchNorm1d(16) if norm else nn.LayerNorm(16)
        return nn.Sequential(
            nn.Linear(6, 16), normed, nn.ReLU(), nn.Linear(16, 4), LatentQuantizer(4, 5), nn.Linear(4, CLASSES)
        )
    if kind == "ode":
        field = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        normed = nn.BatchNorm1d(4) if norm else nn.LayerNorm(4)
        return nn.Sequential(nn.Linear(6, 4), NeuralODE(field, rtol=1e-3, atol=1e-3), normed, nn.Linear(4, CLASSES))
    return {"rnn": Recurrent, "denoiser": Denoiser}[kind]()


SHAPES = {
    "mlp": (6,),
    "normed": (6,),
    "conv": (1, 8, 8),
    "rnn": (5, 4),
    "denoiser": (6,),
    "regressor": (6,),
    "restorer": (6,),
    "views": (6,),
    "discriminator": (6,),
    "quantized": (6,),
    "ode": (6,),
    "preference": (5,),
    "autoencoder": (6,),
    "variational": (6,),
}


@dataclass
class Trial:
    """A model with a recipe attached, and the batch it learns."""

    model: nn.Module
    recipe: wp.Recipe
    batch: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    def run(self, steps: int, split: int = 1, start: int = 0) -> Trial:
        for i in range(start, start + steps):
            parts = [dict(zip(self.batch, rows, strict=True)) for rows in zip(*self.chunks(split), strict=True)]
            self.recipe.step(parts if split > 1 else parts[0], self.optimizer, progress=i / 10)
        return self

    def chunks(self, split: int) -> list[tuple[Tensor, ...]]:
        return [v.chunk(split) for v in self.batch.values()]

    def weights(self) -> Tensor:
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])


def kind_of(name: str) -> str:
    return str(catalogue()[name].example.get("model", "mlp"))


def make_method(name: str, **changed: Any) -> wp.Method:
    cls = catalogue()[name]
    settings = {k: v for k, v in cls.example.items() if k != "model"}
    return cls(**{**settings, **changed})


def make_batch(kind: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, *SHAPES[kind], generator=g, dtype=torch.float64).to(dtype)
    if kind == "denoiser":
        noise = torch.randn(ROWS, 6, generator=g, dtype=torch.float64).to(dtype)
        return {"x": x, "t": torch.randint(0, 100, (ROWS,), generator=g), "noise": noise}
    if kind == "views":
        return {k: x + 0.3 * torch.randn(x.shape, generator=g, dtype=torch.float64).to(dtype) for k in ("x1", "x2")}
    if kind == "discriminator":
        return {"x": x, "z": torch.randn(ROWS, 3, generator=g, dtype=torch.float64).to(dtype)}
    if kind == "preference":
        answers = {k: torch.randint(VOCABULARY, (ROWS, 5), generator=g) for k in ("chosen", "rejected")}
        lengths = 3 + torch.arange(ROWS).view(-1, 1) % 3  # uneven, and not the same in every microbatch
        masks = {f"{k}_mask": torch.arange(5).expand(ROWS, 5) < lengths for k in answers}
        return answers | masks
    if kind == "restorer":
        return {"x": x, "y": x}
    if kind == "regressor":
        return {"x": x, "y": x[:, 0], "index": torch.arange(ROWS), "environment": torch.arange(ROWS) % 2}
    return {"x": x, "y": torch.arange(ROWS) % CLASSES, "index": torch.arange(ROWS)}


def make_task(kind: str) -> wp.Task:
    if kind in ("regressor", "restorer"):
        return wp.Regress()
    if kind == "views":
        return wp.TwoViews()
    if kind == "discriminator":
        return wp.Discriminate(Twice())
    if kind == "preference":
        return wp.Prefer(reference_free=True)
    if kind in ("autoencoder", "variational"):
        return wp.Autoencode(beta=1.0 if kind == "variational" else None)
    return wp.Denoise() if kind == "denoiser" else wp.Classify(classes=CLASSES)


def trial(
    methods: Callable[[], list[wp.Method]],
    kind: str,
    *,
    norm: bool = False,
    dtype: torch.dtype = torch.float64,
    lr: float = 0.05,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    **attach: Any,
) -> Trial:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build(kind, norm).to(dtype)
    recipe = wp.Recipe(*methods()).attach(model, make_task(kind), **attach)
    if wrap:
        recipe.through(wrap(model))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    return Trial(model, recipe, make_batch(kind, dtype), optimizer)


def trial_of(name: str, *, settings: dict[str, Any] | None = None, **kwargs: Any) -> Trial:
    return trial(lambda: [make_method(name, **(settings or {}))], kind_of(name), **kwargs)
