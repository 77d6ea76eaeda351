"""Likelihood: densities fitted to samples."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task
from .classify import logits_of


class Likelihood(Task):
    """Maximum likelihood of a model that returns log-densities.

    ``model(batch["x"])`` gives the logarithm of the density (nats) at each sample, (B,): a normalizing flow, an
    autoregressive density, a mixture. The loss of a sample is minus that.

    Args:
        condition: key of a batch entry (B, ...) that the model gets as a second argument, for conditional densities.

    Raises:
        ValueError: in training, if the model does not return one value per sample.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> class Normal(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mean = torch.nn.Parameter(torch.zeros(2))
        ...     def forward(self, x):
        ...         return torch.distributions.Normal(self.mean, 1.0).log_prob(x).sum(1)
        >>> model = Normal()
        >>> recipe = Recipe().attach(model, Likelihood())
        >>> sorted(recipe.step({"x": torch.randn(8, 2)}, torch.optim.SGD(model.parameters(), lr=0.1)))
        ['task', 'total']
    """

    yields = ("log_density",)

    def __init__(self, *, condition: str | None = None) -> None:
        self.condition = condition
        self.reads = ("x",) if condition is None else ("x", condition)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        log_density = logits_of(model(*(batch[key] for key in self.reads)))
        if log_density.shape != (len(batch["x"]),):  # a mean over it would train and mean nothing
            raise ValueError(
                f"Likelihood: the model must return one log-density per sample, shape ({len(batch['x'])},), "
                f"got {tuple(log_density.shape)}"
            )
        return {"log_density": log_density}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        rows: Tensor = -out["log_density"]
        return rows

    def __repr__(self) -> str:
        return f"Likelihood({'' if self.condition is None else f'condition={self.condition!r}'})"
