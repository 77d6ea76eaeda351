"""What the claims about autoencoders share: nets, training, and what is measured of codes and of samples."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..core import Method, Recipe
from ..parts.kernels import mmd
from ..parts.spectra import covariance
from ..tasks import Autoencode, Autoencoder
from .arenas import Sample, digits, mlp
from .samples import frechet_distance, principal

WIDTH, BATCH, STEPS, LR = 8, 100, 600, 2e-3
WORDS = (
    f"1200 digits of 64 pixels, {WIDTH} latents, MLP 64-128-{WIDTH}-128-64, AdamW {LR:g}, batch {BATCH}, {STEPS} steps"
)


def autoencoder(seed: int, *sizes: int, variational: bool = False) -> Autoencoder:
    """ReLU layers of these sizes down to the code, the last of them, and back."""
    *outer, code = sizes
    encoder = mlp(seed, *outer, 2 * code if variational else code)
    return Autoencoder(encoder, mlp(seed + 1_000_000, code, *reversed(outer)), variational)


def fitted(
    model: Autoencoder,
    x: Tensor,
    *methods: Method,
    seed: int,
    task: Autoencode | None = None,
    steps: int = STEPS,
    batch: int = BATCH,
    lr: float = LR,
) -> Autoencoder:
    """Train on batches drawn without repetition from each shuffled pass, at a constant rate; in evaluation mode."""
    recipe = Recipe(*methods, seed=seed).attach(model, task or Autoencode(), steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    order = torch.Generator().manual_seed(seed)
    rows = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(rows) < batch:
            rows = torch.randperm(len(x), generator=order)
        recipe.step({"x": x[rows[:batch]]}, optimizer)
        rows = rows[batch:]
    recipe.finish()
    return model.eval()


@cache
def sample_of(seed: int) -> Sample:
    """1200 digits to learn from, 597 to test on."""
    return digits(seed, 1200)


def trained(seed: int, *methods: Method, beta: float | None = None) -> Autoencoder:
    """The digits' autoencoder of this seed; variational where there is a beta."""
    model = autoencoder(seed, 64, 128, WIDTH, variational=beta is not None)
    return fitted(model, sample_of(seed).x, *methods, seed=seed, task=Autoencode(beta=beta))


@torch.no_grad()
def reconstruction(model: Autoencoder, x: Tensor) -> float:
    """Mean over samples of the summed squared error."""
    return float((model(x)["reconstruction"] - x).square().flatten(1).sum(1).mean())


@torch.no_grad()
def generation(model: Autoencoder, seed: int, refit: bool = False) -> dict[str, float]:
    """How close test codes are to N(0, I), and decoded draws of it to the test digits; and the reconstruction.

    ``refit``: in place of N(0, I) the normal law with mean and covariance of the training codes.
    """
    test = sample_of(seed).x_test
    g = torch.Generator().manual_seed(seed)
    prior = torch.randn(2000, WIDTH, generator=g)
    if refit:
        known = codes(model, sample_of(seed).x, g)
        prior = prior @ torch.linalg.cholesky(covariance(known)).T + known.mean(0)
    mean, directions = principal(sample_of(seed).x, 16)
    made = model.decode(prior)
    return {
        "MMD of codes": float(mmd(codes(model, test, g), prior[: len(test)], scale=float(WIDTH) ** 0.5)),
        "Frechet distance": frechet_distance((made - mean) @ directions, (test - mean) @ directions),
        "reconstruction": reconstruction(model, test),
    }


@torch.no_grad()
def codes(model: Autoencoder, x: Tensor, g: torch.Generator) -> Tensor:
    """Codes as the decoder meets them in training: a draw each, where the model is variational."""
    out = model(x)
    if not model.variational:
        return out["code"]
    return out["mean"] + (out["log_variance"] / 2).exp() * torch.randn(out["mean"].shape, generator=g)
