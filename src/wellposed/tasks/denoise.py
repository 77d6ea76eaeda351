"""Denoising: diffusion models and flow matching."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of
from .noise_levels import (
    Predict,
    cosine_betas,
    estimates,
    linear_betas,
    log_snr_of,
    noise_error,
    target_of,
)

Schedule = Literal["linear", "cosine", "flow", "trig"]
Weighting = Literal["simple"] | Callable[[Tensor], Tensor]
Distance = Literal["squared"] | Callable[[Tensor, Tensor, Tensor], Tensor]


class Denoise(Task):
    """Predict the noise, the clean sample, or a mixture of them from x_t = alpha_t x + sigma_t noise.

    ``batch["x"]`` (B, ...) is clean, ``batch["noise"]`` has its shape, and ``batch["t"]`` (B,) is the time: integers in
    0 ... steps - 1, or reals in [0, 1], 1 being pure noise, for ``"flow"`` and ``"trig"``. ``draw`` makes such a batch.
    The model is called as ``model(x_t, t)``. The loss of a sample is w_t times its mean squared error. Where a batch
    also holds ``"input_noise"``, x_t is made with that, and the target with ``"noise"`` still; ``"condition"`` (B, ...)
    is handed to the model as a third argument. `wellposed.parts.samplers` draws samples.

    Args:
        predict: ``"epsilon"`` the noise; ``"x0"`` the clean sample; ``"v"`` alpha noise - sigma x (Salimans, Ho 2022,
            arXiv 2202.00512, section 4); ``"velocity"`` noise - x, the direction of the straight path.
        schedule: ``"linear"`` or ``"cosine"`` variances, alpha^2 = prod (1 - beta), sigma^2 = 1 - alpha^2; or
            ``"flow"``: alpha = 1 - t, sigma = t (Liu et al. 2022, Rectified Flow, arXiv 2209.03003, Eq. 1, with the
            ends of time exchanged); or ``"trig"``: alpha and sigma are cosine and sine of pi t / 2.
        weighting: ``"simple"``: w = 1 on whatever is predicted. A function (B,) -> (B,) of log SNR: its value weighs
            the error of the noise, so that the loss is the same whatever is predicted; `MinSNR`, say.
            SNR = alpha^2 / sigma^2, its logarithm held within [-20, 20].
        distance: ``"squared"``, or a function (error, time, log_snr) -> elementwise values, of the error (B, ...), the
            time as a share of [0, 1] and log SNR, both (B,): `PseudoHuber`, say. The error is that of the noise
            unless the weighting is simple.
        steps: number of times of the discrete schedules; at least 1.
        log_noise: mean and standard deviation of log(sigma / alpha), which ``draw`` then makes normal, with real times;
            None: uniform times. With ``"v"``, ``"trig"`` and data of unit variance (-0.51, 1.2) is the training of
            Karras et al. 2022 (arXiv 2206.00364, Table 1), whose preconditioned net predicts -v; with ``"flow"``
            (0, 1) is the logit-normal law of Esser et al. 2024 (arXiv 2403.03206, section 3.1).

    Raises:
        ValueError: for an unknown name, a number out of its range, or a velocity off the straight path.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(3, 2)
        ...     def forward(self, x, t):
        ...         return self.layer(torch.cat([x, t[:, None] / 1000], 1))
        >>> model, task = Net(), Denoise()
        >>> recipe = Recipe().attach(model, task)
        >>> batch = task.draw(torch.randn(8, 2), torch.Generator().manual_seed(0))
        >>> sorted(recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    reads = ("x", "t", "noise")
    yields = ("prediction", "x_t")

    def __init__(
        self,
        predict: Predict = "epsilon",
        schedule: Schedule = "linear",
        *,
        weighting: Weighting = "simple",
        distance: Distance = "squared",
        steps: int = 1000,
        log_noise: tuple[float, float] | None = None,
    ) -> None:
        for name, value, known in (("predict", predict, Predict), ("schedule", schedule, Schedule)):
            if value not in get_args(known):
                raise ValueError(f"Denoise: {name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if not (callable(weighting) or weighting == "simple"):
            raise ValueError(f"Denoise: weighting must be simple or a function of log SNR, got {weighting!r}")
        if not (callable(distance) or distance == "squared"):
            raise ValueError(f"Denoise: distance must be squared or a function of errors, got {distance!r}")
        if predict == "velocity" and schedule != "flow":
            raise ValueError("Denoise: noise - x is a velocity only on the straight path; use schedule='flow'")
        if steps < 1:
            raise ValueError(f"Denoise: steps must be at least 1, got {steps}")
        self.predict, self.schedule, self.weighting, self.distance = predict, schedule, weighting, distance
        self.steps, self.log_noise = steps, log_noise
        if log_noise is not None and not (self.continuous and log_noise[1] > 0):
            raise ValueError(
                "Denoise: log_noise is (mean, standard deviation above 0) for schedule='flow' or 'trig', got "
                f"{log_noise!r} with {schedule!r}"
            )
        betas = cosine_betas(steps) if schedule == "cosine" else linear_betas(steps)
        kept = (1 - betas).cumprod(0)
        self.table = torch.stack([kept.sqrt(), (1 - kept).sqrt()])  # alpha and sigma of a discrete schedule

    @property
    def continuous(self) -> bool:
        """Whether times are real, in [0, 1]."""
        return self.schedule in ("flow", "trig")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A batch of clean samples ``x`` (B, ...) with random times and normal noise from ``generator``."""
        here: dict[str, Any] = {"device": x.device, "generator": generator}
        wide = torch.promote_types(x.dtype, torch.float32)  # uniform draws in bfloat16 are multiples of 1 / 256
        if self.log_noise is not None:
            ratio = self.log_noise[0] + self.log_noise[1] * torch.randn(len(x), dtype=wide, **here)
            t = ratio.sigmoid() if self.schedule == "flow" else ratio.exp().atan() * (2 / math.pi)
        elif self.continuous:
            t = torch.rand(len(x), dtype=wide, **here)
        else:
            t = torch.randint(self.steps, (len(x),), **here)
        noise = torch.randn(x.shape, dtype=x.dtype, **here)
        return {"x": x, "t": t.to(x.dtype) if self.continuous else t, "noise": noise}

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times ``t`` (B,), shaped to multiply ``like`` (B, ...)."""
        if self.continuous:
            t = t.to(torch.promote_types(t.dtype, torch.float32))
        if self.schedule == "flow":
            alpha, sigma = 1 - t, t
        elif self.schedule == "trig":
            angle = t * (math.pi / 2)
            alpha, sigma = angle.cos().clamp_min(0), angle.sin()
        else:
            widest = torch.float32 if t.device.type == "mps" else torch.float64  # Apple's devices have no float64
            self.table = self.table.to(t.device, widest)  # moves once
            alpha, sigma = self.table[:, t]
        shape = (-1, *[1] * (like.ndim - 1))
        return alpha.to(like.dtype).view(shape), sigma.to(like.dtype).view(shape)

    def estimates(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The clean sample and the noise that a model's answer at ``x_t`` and times ``t`` (B,) amounts to."""
        return estimates(self.predict, prediction, x_t, *self.levels(t, x_t))

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        x, t = batch["x"], batch["t"]
        alpha, sigma = self.levels(t, x)
        x_t = alpha * x + sigma * batch.get("input_noise", batch["noise"])
        given = (batch["condition"],) if "condition" in batch else ()
        return {"prediction": prediction_of(model(x_t, t, *given)), "x_t": x_t}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        x, prediction = batch["x"], out["prediction"]
        if prediction.shape != x.shape:
            raise ValueError(f"Denoise: the prediction has shape {tuple(prediction.shape)}, x has {tuple(x.shape)}")
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # weights, and errors times SNR, overflow in half
        alpha, sigma = self.levels(batch["t"], x)
        error = prediction - target_of(self.predict, x, batch["noise"].to(x.dtype), alpha, sigma)
        if callable(self.weighting):
            error = noise_error(self.predict, alpha, sigma) * error
        log_snr = log_snr_of(alpha, sigma).flatten()
        if callable(self.distance):
            time = batch["t"] if self.continuous else batch["t"] / self.steps
            apart = self.distance(error, time.to(x.dtype), log_snr)
        else:
            apart = error.square()
        rows = self.reduce(apart, batch)
        return self.weighting(log_snr) * rows if callable(self.weighting) else rows

    def __repr__(self) -> str:
        distance = "" if self.distance == "squared" else f", distance={self.distance!r}"
        law = "" if self.log_noise is None else f", log_noise={self.log_noise}"
        settings = f"weighting={self.weighting!r}{distance}, steps={self.steps}{law}"
        return f"Denoise({self.predict!r}, {self.schedule!r}, {settings})"


def prediction_of(output: Any) -> Tensor:
    """What a denoiser returned: a tensor, or an object that carries it as ``.sample`` (diffusers) or ``.logits``."""
    return logits_of(getattr(output, "sample", output))
