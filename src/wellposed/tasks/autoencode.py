"""Autoencoding: reconstruct the input from a code, deterministic or variational."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.task import Batch, Outputs, Task

Error = Literal["squared", "absolute", "bernoulli"]


def normal_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence (nats) of N(mean, diag exp(log_variance)) from N(0, I).

    Args:
        mean, log_variance: (B, ...), of one shape.

    Returns:
        shape (B,), in at least float32: the sum over the coordinates; Kingma, Welling 2013 (arXiv 1312.6114),
        appendix B.
    """
    mean, log_variance = _wide(mean), _wide(log_variance)
    return (mean.square() + log_variance.expm1() - log_variance).flatten(1).sum(1) / 2


class Autoencoder(nn.Module):
    """Any encoder and decoder as the model that ``Autoencode`` trains.

    Called with x it returns a mapping with ``reconstruction`` and ``code``; a variational one also gives ``mean`` and
    ``log_variance``, and its code is drawn in training, mean + exp(log_variance / 2) noise, and is the mean in
    evaluation.

    Args:
        encoder: x (B, ...) -> code (B, d), or any other shape (B, ...). Of a variational model (B, 2 d): mean and
            logarithm of the variance, joined along dimension 1.
        decoder: code -> reconstruction, of x's shape.
        variational: whether the code is a normal law of which a sample is decoded.

    Example:
        >>> import torch
        >>> model = Autoencoder(torch.nn.Linear(4, 2), torch.nn.Linear(2, 4))
        >>> {key: tuple(value.shape) for key, value in model(torch.randn(8, 4)).items()}
        {'reconstruction': (8, 4), 'code': (8, 2)}
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, variational: bool = False) -> None:
        super().__init__()
        self.encoder, self.decoder, self.variational = encoder, decoder, variational
        self.stochastic = variational  # the recipe then makes the noise a pure function of its seed and the step

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """What ``Autoencode`` needs, by name."""
        if not self.variational:
            code = self.encoder(x)
            return {"reconstruction": self.decoder(code), "code": code}
        mean, log_variance = self._law(x)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return {"reconstruction": self.decoder(code), "code": code, "mean": mean, "log_variance": log_variance}

    def encode(self, x: Tensor) -> Tensor:
        """The code of x; the mean where it is variational."""
        code: Tensor = self._law(x)[0] if self.variational else self.encoder(x)
        return code

    def decode(self, code: Tensor) -> Tensor:
        """The reconstruction that belongs to a code."""
        found: Tensor = self.decoder(code)
        return found

    def _law(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.encoder(x)
        if both.ndim < 2 or both.shape[1] % 2:
            raise ValueError(
                "Autoencoder: a variational encoder returns mean and log-variance joined along dimension 1, "
                f"an even number of columns; got shape {tuple(both.shape)}"
            )
        mean, log_variance = both.chunk(2, 1)
        return mean, log_variance


class Autoencode(Task):
    """Reconstruct ``batch["x"]`` (B, ...), or what ``of`` names, from its code.

    ``model(x)`` returns a mapping with ``reconstruction`` (x's shape) and ``code`` (B, d), a variational one also
    ``mean`` and ``log_variance`` (B, d): an ``Autoencoder``, or a model of your own. The loss of a sample is the error
    summed over its elements, plus beta times the KL divergence of its code from N(0, I).

    Args:
        error: ``"squared"`` d^2 (with beta 1 a normal likelihood of variance 1/2; of variance v: beta 2v);
            ``"absolute"`` |d|; ``"bernoulli"``, the cross-entropy of x in [0, 1], the reconstruction being logits; or a
            function (reconstruction, x) -> one value per element or per sample.
        beta: weight of the KL divergence of a variational model, at least 0; 1 with a log-likelihood as error is the
            negative evidence bound, above 1 is the beta-VAE (Higgins et al. 2017). None: the model is not variational.
        of: key of the batch that is reconstructed. Another than ``"x"`` where what the model sees is not what it should
            give: the clean data of a denoising autoencoder, say.

    Raises:
        ValueError: for an unknown error or a negative beta; in training for a model that returns something else, is
            variational without a beta, or has a beta and is not, and for a first batch outside [0, 1] if
            ``"bernoulli"``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from wellposed import Autoencode, Autoencoder, Recipe
        >>> model = Autoencoder(nn.Linear(4, 2 * 2), nn.Linear(2, 4), variational=True)
        >>> recipe = Recipe().attach(model, Autoencode(beta=1.0))
        >>> sorted(recipe.step({"x": torch.randn(8, 4)}, torch.optim.SGD(model.parameters(), lr=0.01)))
        ['task', 'total']
    """

    def __init__(
        self,
        error: Error | Callable[[Tensor, Tensor], Tensor] = "squared",
        *,
        beta: float | None = None,
        of: str = "x",
    ) -> None:
        if not (callable(error) or error in get_args(Error)):
            raise ValueError(
                f"Autoencode: error must be a function or one of {', '.join(get_args(Error))}, got {error!r}"
            )
        if beta is not None and not beta >= 0:
            raise ValueError(f"Autoencode: beta must be at least 0, got {beta}")
        self.error, self.beta, self.of = error, beta, of
        self._looked = False
        self.reads = ("x",) if of == "x" else ("x", of)
        self.yields = ("reconstruction", "code") + (("mean", "log_variance") if beta is not None else ())

    def forward(self, model: nn.Module, batch: Batch) -> Outputs:
        out = model(batch["x"])
        if not isinstance(out, Mapping):
            raise ValueError(
                "Autoencode: the model must return a mapping with 'reconstruction' and 'code', as Autoencoder does; "
                f"got {type(out).__name__}"
            )
        if missing := [key for key in self.yields if key not in out]:
            hint = "; beta is for variational models" if missing[0] in ("mean", "log_variance") else ""
            raise ValueError(f"Autoencode: the model returns {sorted(out)}, without '{missing[0]}'{hint}")
        if self.beta is None and "log_variance" in out:
            raise ValueError(
                "Autoencode: the model is variational, it returns 'log_variance': give beta, 1.0 for the evidence "
                "bound, 0.0 for no divergence"
            )
        return dict(out)

    def loss(self, out: Outputs, batch: Batch) -> Tensor:
        rows = self.reconstruction_error(out["reconstruction"], batch[self.of])
        return rows if self.beta is None else rows + self.beta * normal_kl(out["mean"], out["log_variance"])

    def reconstruction_error(self, reconstruction: Tensor, x: Tensor) -> Tensor:
        """The error of each sample, summed over its elements, (B,)."""
        if reconstruction.shape != x.shape:  # subtracting would broadcast to something that trains and means nothing
            raise ValueError(
                f"Autoencode: the reconstruction has shape {tuple(reconstruction.shape)}, "
                f"{self.of} has {tuple(x.shape)}"
            )
        found, wanted = _wide(reconstruction), _wide(x)
        if callable(self.error):
            values = self.error(found, wanted)
        elif self.error == "squared":
            values = (found - wanted).square()
        elif self.error == "absolute":
            values = (found - wanted).abs()
        else:
            if not self._looked:  # once: a GPU is waited for
                self._looked = True
                if bool(((wanted < 0) | (wanted > 1)).any()):
                    raise ValueError(
                        f'Autoencode: "bernoulli" is for values in [0, 1], {self.of} has some from {wanted.min():g} to '
                        f"{wanted.max():g}: scale it, or take another error"
                    )
            values = F.binary_cross_entropy_with_logits(found, wanted, reduction="none")
        if values.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"Autoencode: the error must have one value per element or per sample of {tuple(x.shape)}, "
                f"got shape {tuple(values.shape)}"
            )
        return values.flatten(1).sum(1) if values.ndim > 1 else values

    def __repr__(self) -> str:
        error = repr(self.error) if isinstance(self.error, str) else getattr(self.error, "__name__", repr(self.error))
        beta = "" if self.beta is None else f", beta={self.beta:g}"
        of = "" if self.of == "x" else f", of={self.of!r}"
        return f"Autoencode({error}{beta}{of})"


def _wide(x: Tensor) -> Tensor:
    """At least float32. That of ``parts.spectra`` would load parts with the tasks."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
