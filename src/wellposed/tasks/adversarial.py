"""Adversarial training: a discriminator that tells real from generated samples, and the generator it teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.parallel import frozen_statistics
from ..core.task import Batch, Outputs, Task
from .classify import logits_of

Game = Literal["relativistic", "non-saturating", "hinge", "least-squares"]
Loss = Game | Callable[[Tensor, Tensor], Tensor]


def discriminator_loss(real: Tensor, fake: Tensor, game: Game = "relativistic") -> Tensor:
    """What the discriminator pays, elementwise.

    Args:
        real, fake: its logits of real and of generated samples, in pairs.
        game: ``"relativistic"`` log(1 + exp(fake - real)) (Jolicoeur-Martineau 2018, arXiv 1807.00734, section 4.1);
            ``"non-saturating"`` log(1 + exp(-real)) + log(1 + exp(fake)) (Goodfellow et al. 2014, arXiv 1406.2661, Eq.
            1); ``"hinge"`` max(0, 1 - real) + max(0, 1 + fake) (Lim, Ye 2017, arXiv 1705.02894); ``"least-squares"``
            ((real - 1)^2 + fake^2) / 2 (Mao et al. 2016, arXiv 1611.04076, Eq. 9).
    """
    if game == "relativistic":
        return F.softplus(fake - real)
    if game == "non-saturating":
        return F.softplus(-real) + F.softplus(fake)
    if game == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    return ((real - 1).square() + fake.square()) / 2


def generator_loss(real: Tensor, fake: Tensor, game: Game = "relativistic") -> Tensor:
    """What the generator pays, elementwise: arguments and sources as of ``discriminator_loss``.

    ``"relativistic"`` log(1 + exp(real - fake)); ``"non-saturating"`` log(1 + exp(-fake)); ``"hinge"`` -fake;
    ``"least-squares"`` (fake - 1)^2 / 2.
    """
    if game == "relativistic":
        return F.softplus(real - fake)
    if game == "non-saturating":
        return F.softplus(-fake)
    if game == "hinge":
        return -fake
    return (fake - 1).square() / 2


class Discriminate(Task):
    """The discriminator's side: judge real samples against a generator's. Attach its recipe to the discriminator.

    ``batch["x"]`` (B, ...) are real samples, and ``batch["z"]`` (B, ...) is what the generator makes as many of; the
    pairs of relativistic losses are those of one place in the batch. Real and generated samples go through the
    discriminator in one pass, so batch normalisation and DDP see one batch of 2B. Logits are (B,), (B, 1), or several a
    sample, over which its loss is the mean.

    The generator is looked at as it is at this update, in its own mode, without gradient; its running statistics stay.
    A DDP wrapper is passed by.

    Args:
        generator: z -> samples of x's shape; the one that trains in the other recipe.
        loss: name of the game, the same for both players (see ``discriminator_loss``), or a function
            (real, fake) -> one value per logit.
        condition: key of a batch entry (B, ...) that both models get as a second argument: classes, say.

    Raises:
        ValueError: for an unknown game; in training if the generated samples have another shape than the real ones.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> generator, discriminator = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
        >>> recipe = Recipe().attach(discriminator, Discriminate(generator))
        >>> batch = {"x": torch.randn(8, 2), "z": torch.randn(8, 3)}
        >>> sorted(recipe.step(batch, torch.optim.SGD(discriminator.parameters(), lr=0.1)))
        ['task', 'total']
    """

    yields = ("real", "fake", "fakes")

    def __init__(self, generator: nn.Module, loss: Loss = "relativistic", *, condition: str | None = None) -> None:
        self.generator, self.game, self.condition = generator, _checked("Discriminate", loss), condition
        self.reads = _reads(condition)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        fakes = batch.get("fakes")  # an extra pass looks at the samples it was given
        if fakes is None:
            with torch.no_grad(), frozen_statistics(self.generator):
                fakes = _local(self.generator)(batch["z"], *_given(batch, self.condition))
        real, fake = _judged(model, batch, fakes, self.condition)
        return {"real": real, "fake": fake, "fakes": fakes}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        real, fake = out["real"], out["fake"]
        values = self.game(real, fake) if callable(self.game) else discriminator_loss(real, fake, self.game)
        return self.reduce(values, batch)

    def __repr__(self) -> str:
        return f"Discriminate({type(_local(self.generator)).__name__}, {_name(self.game)})"


class Generate(Task):
    """The generator's side: make samples that a discriminator takes for real. Attach its recipe to the generator.

    The batch is that of ``Discriminate``; real samples are needed as the other halves of relativistic pairs, and as a
    part of the batch that the discriminator is used to. The gradient goes through the discriminator and leaves its
    weights, their ``.grad`` and its running statistics alone. Activation checkpoints in the discriminator fail: torch
    would compute them again with weights that are trained.

    Args:
        discriminator: the one that trains in the other recipe.
        loss: name of the game, or a function (real, fake) -> one value per logit.
        condition: key of a batch entry that both models get as a second argument.

    Raises:
        ValueError: as ``Discriminate``.

    Example:
        >>> import torch
        >>> from wellposed import Recipe
        >>> generator, discriminator = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
        >>> recipe = Recipe().attach(generator, Generate(discriminator))
        >>> batch = {"x": torch.randn(8, 2), "z": torch.randn(8, 3)}
        >>> terms = recipe.step(batch, torch.optim.SGD(generator.parameters(), lr=0.1))
        >>> all(p.grad is None for p in discriminator.parameters())
        True
    """

    yields = ("fakes", "real", "fake")

    def __init__(self, discriminator: nn.Module, loss: Loss = "relativistic", *, condition: str | None = None) -> None:
        self.discriminator, self.game, self.condition = discriminator, _checked("Generate", loss), condition
        self.reads = _reads(condition)

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        fakes = logits_of(model(batch["z"], *_given(batch, self.condition)))
        with frozen_statistics(self.discriminator), _untrained(self.discriminator):
            real, fake = _judged(_local(self.discriminator), batch, fakes, self.condition)
        return {"fakes": fakes, "real": real, "fake": fake}

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        real, fake = out["real"], out["fake"]
        values = self.game(real, fake) if callable(self.game) else generator_loss(real, fake, self.game)
        return self.reduce(values, batch)

    def __repr__(self) -> str:
        return f"Generate({type(_local(self.discriminator)).__name__}, {_name(self.game)})"


def _judged(model: nn.Module, batch: Batch, fakes: Tensor, condition: str | None) -> tuple[Tensor, Tensor]:
    """Logits of the real and of the generated samples, from one pass."""
    x = batch["x"]
    if fakes.shape != x.shape:
        raise ValueError(f"the generated samples have shape {tuple(fakes.shape)}, the real ones {tuple(x.shape)}")
    given = (torch.cat([value, value]) for value in _given(batch, condition))
    logits = logits_of(model(torch.cat([x, fakes.to(x.dtype)]), *given))
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits.squeeze(1)
    real, fake = logits.chunk(2)
    return real, fake


def _given(batch: Batch, condition: str | None) -> list[Tensor]:
    return [] if condition is None else [batch[condition]]


def _reads(condition: str | None) -> tuple[str, ...]:
    return ("x", "z") if condition is None else ("x", "z", condition)


def _checked(owner: str, loss: Loss) -> Loss:
    if not (callable(loss) or loss in get_args(Game)):
        raise ValueError(f"{owner}: loss must be a function or one of {', '.join(get_args(Game))}, got {loss!r}")
    return loss


def _name(game: Loss) -> str:
    return repr(game) if isinstance(game, str) else getattr(game, "__name__", repr(game))


def _local(model: nn.Module) -> nn.Module:
    """Without a DDP wrapper, which would expect a backward pass."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def _untrained(model: nn.Module) -> Iterator[None]:
    """What is computed inside sends no gradient to the model's parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
