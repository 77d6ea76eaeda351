"""Input perturbation: train a denoiser on inputs as wrong as those it meets while sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Method, Step, Task, knob
from ..core.errors import RecipeError
from ..core.schedules import Scalar
from ..core.task import Batch
from ..tasks.denoise import Denoise

__all__ = ["InputPerturbation", "perturbed_noise"]


def perturbed_noise(noise: Tensor, gamma: float, generator: torch.Generator | None = None) -> Tensor:
    """noise + gamma xi, xi standard normal: what an input is made with whose target stays ``noise``.

    Args:
        noise: any shape.
        gamma: at least 0.
        generator: of xi, on the noise's device.

    Returns:
        the shape of ``noise``; Ning et al. 2023 (arXiv 2301.11706), Algorithm 1.
    """
    xi = torch.randn(noise.shape, generator=generator, device=noise.device, dtype=noise.dtype)
    return noise.add(xi, alpha=gamma)


class InputPerturbation(Method, paper="ddpm-ip"):
    r"""Input perturbation (DDPM-IP): a diffusion model learns from inputs noisier than it is told.

    Computes:
        x_t = alpha_t x + sigma_t (noise + gamma xi), with xi standard normal, drawn anew for every microbatch; the
        target is made with ``noise`` alone. So the model sees errors of the size gamma sigma_t, as while sampling,
        where its own earlier errors are in the input. The sampler stays as it is.

    Formula:
        x_t = \alpha_t x + \sigma_t (\epsilon + \gamma \xi), \qquad \xi \sim \mathcal{N}(0, I)
        \ell = \lVert \epsilon - \hat \epsilon (x_t, t) \rVert^2

    Helps:
        Exposure bias of models whose samples wander off what they were trained on (`exposure_bias` shows it); the paper
        reports better samples of large image models after less training.

    Avoid:
        Models that fit well: they learn another denoiser, the one of noise sqrt(1 + gamma^2) times as large, divided by
        sqrt(1 + gamma^2). On eight Gaussians in the plane samples were no better after short training, and slightly
        worse after long.

    Defaults:
        gamma 0.1, the paper's (0.15 for CIFAR-10).

    Cost:
        One pass.

    Reference:
        Ning, Sangineto, Porrello, Calderara, Cucchiara 2023, Input Perturbation Reduces Exposure Bias in Diffusion
        Models, arXiv 2301.11706, Algorithm 1.

    Args:
        gamma: standard deviation of the error, relative to the noise, a number or a schedule; 0 perturbs nothing.
    """

    reads = ("noise",)
    null = {"gamma": 0.0}
    exact = False
    example = {"model": "denoiser"}

    gamma: Scalar = knob(0.1, low=0.0, grid=(0.05, 0.1, 0.2))

    def setup(self, model: nn.Module, task: Task) -> None:
        if not isinstance(task, Denoise):
            raise RecipeError(f"InputPerturbation perturbs the noise of a Denoise task, got {type(task).__name__}")

    def batch(self, batch: Batch, step: Step) -> Batch:
        gamma = step.at(self.gamma)
        if gamma == 0:
            return batch
        noise = batch.get("input_noise", batch["noise"])
        return {**batch, "input_noise": perturbed_noise(noise, gamma, step.rng(self, device=noise.device))}
