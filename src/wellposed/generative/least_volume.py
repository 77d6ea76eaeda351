"""Least volume: an autoencoder whose code flattens to as few coordinates as the data need."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

from ..core import Method, RecipeError, Step, Task, knob
from ..core.modes import evaluating
from ..core.schedules import Scalar
from ..parts.spectra import wide

__all__ = ["LeastVolume", "PrunedLatents", "latent_importance", "least_volume", "prune_latents"]

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
UNBOUNDED = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.MultiheadAttention)  # with parameters or without


def deviations(code: Tensor) -> Tensor:
    """Standard deviation of each coordinate over the rows of (N, d), divided by N - 1; of slope 0 where it is 0."""
    variance = wide(code).var(0)
    return variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()


def least_volume(code: Tensor, eta: float = 0.01) -> Tensor:
    """Geometric mean over the coordinates of deviation + eta: the side of the cube as large as the codes' box.

    Args:
        code: (N, d), N at least 2.
        eta: at least 0. The larger, the less it favours small deviations: at infinity it is their mean, plus eta.

    Returns:
        a scalar in at least float32; Chen, Fuge 2024 (arXiv 2404.17773), section 2.

    Raises:
        ValueError: for a single row.
    """
    if len(code) < 2:
        raise ValueError("least_volume: a deviation needs at least 2 codes in a batch")
    return (deviations(code) + eta).log().mean().exp()


class PrunedLatents(nn.Module):
    """Puts its own mean in place of pruned coordinates: ``nn.Sequential(pruned, decoder)`` decodes what is left.

    Args:
        kept: which coordinates stay, (d,) of bool.
        mean: what the others become, (d,).
    """

    kept: Tensor
    mean: Tensor

    def __init__(self, kept: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("mean", mean)

    def forward(self, code: Tensor) -> Tensor:
        """Codes (B, d) with pruned coordinates fixed."""
        return code.where(self.kept, self.mean.to(code.dtype))


def prune_latents(code: Tensor, tolerance: float = 0.01) -> PrunedLatents:
    """Prune the coordinates that hardly vary over a sample of codes.

    Args:
        code: (N, d), N at least 2.
        tolerance: those are kept whose deviation is above this share of the largest; in [0, 1).

    Returns:
        a module (B, d) -> (B, d); its ``kept`` says which are left, and ``code[:, kept]`` is the shorter code.

    Raises:
        ValueError: for another tolerance, or a single row.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"prune_latents: tolerance must be at least 0 and below 1, got {tolerance:g}")
    if len(code) < 2:
        raise ValueError("prune_latents: a deviation needs at least 2 codes")
    spread = wide(code.detach()).std(0)
    return PrunedLatents(spread > tolerance * spread.max(), code.detach().mean(0))


@torch.no_grad()
def latent_importance(decoder: nn.Module, code: Tensor, x: Tensor) -> Tensor:
    """What each coordinate alone is worth: how much the squared error grows when it is fixed at its mean.

    Args:
        decoder: codes -> reconstructions of x's shape; looked at in evaluation mode.
        code: (N, d), the codes of x.
        x: (N, ...).

    Returns:
        shape (d,): mean over the samples of the growth of the summed squared error. Of a trained least-volume
        autoencoder it falls with the deviations, as with the variances in principal component analysis.

    Raises:
        ValueError: for codes of another shape.
    """

    if code.ndim != 2:
        raise ValueError(f"latent_importance: needs codes (N, d), got {tuple(code.shape)}")

    def error(codes: Tensor) -> Tensor:
        return (wide(decoder(codes)) - wide(x)).square().flatten(1).sum(1).mean()

    with evaluating(decoder):
        whole, mean = error(code), code.mean(0)
        fixed = []
        for i in range(code.shape[1]):
            without = code.clone()
            without[:, i] = mean[i]
            fixed.append(error(without) - whole)
    return torch.stack(fixed)


class LeastVolume(Method, paper="least-volume"):
    r"""Least volume: flatten the code of an autoencoder to as few coordinates as reconstruction needs.

    Computes:
        strength * geometric mean over the coordinates of (deviation over the batch, of all ranks, + eta). So that
        shrinking all of them alike does not pay, the decoder is held to a Lipschitz constant: the weight of each linear
        layer, and the kernel of each convolution as a matrix, gets spectral norm 1 by a parametrisation, with one power
        iteration a pass. What hardly varies after training is pruned (``prune_latents``), in the order of
        ``latent_importance``.

    Formula:
        \lambda \left( \prod_{i=1}^{d} (\sigma_i + \eta) \right)^{1/d}, \qquad \sigma_i^2 = \mathrm{Var}_x [z_i], \qquad \lVert W_l \rVert_2 = 1 \text{ in the decoder}

    Helps:
        Finding how few coordinates a data set needs, and which, without training for each number: on a curved surface 4
        to 6 of 8 stayed, where the mean of the deviations (a large eta) left 7 or 8, and pruning the rest raised the
        error by a tenth at most.

    Avoid:
        Decoders with normalisation, attention, recurrence or learned scales, whose Lipschitz constant nothing bounds
        (refused), and activations that stretch. Small batches: deviations are batch statistics. Expecting the exact
        intrinsic dimension of a surface that bends; or the bound to matter much in short training, where doing without
        kept at most one coordinate more.

    Defaults:
        strength 0.03, the upper end of the paper's; eta 0.01, that of the authors' code for the basic model (1 in their
        runs on images). The error is summed over elements: with a mean the strength is to be divided by their number.

    Cost:
        One pass; two products with a vector for each layer of the decoder.

    Reference:
        Chen, Fuge 2024, Compressing Latent Space via Least Volume, arXiv 2404.17773. The authors normalise the
        map that a convolution is on images of one size; here its kernel is, as a matrix (outputs, rest), for any size.
        The map's norm is then at most the root of the kernel's area: bounded all the same, though not by 1. Frozen
        layers are bounded already and left alone.

    Args:
        decoder: name of the submodule to hold to a Lipschitz constant; None: it is held already.
        eta: added to each deviation.
        strength: factor of the penalty.
    """  # noqa: E501

    scope = "batch"
    exact = False  # the power iteration moves in every pass
    reads = ("code",)
    stops = True  # the singular vectors are held constant
    null = {"strength": 0.0, "decoder": None}
    example = {"model": "autoencoder"}

    decoder: str | None = "decoder"
    eta: float = knob(0.01, low=0.0)
    strength: Scalar = knob(0.03, low=0.0, grid=(0.003, 0.03, 0.3), log=True)

    def setup(self, model: nn.Module, task: Task) -> None:
        self.orders: dict[str, list[str]] = {}
        if self.decoder is None:
            return
        chosen = _to_normalise(model, self.decoder)
        devices = {layer.weight.device for layer in chosen.values() if layer.weight.is_cuda}
        with torch.random.fork_rng(devices=list(devices)):  # torch draws the first vectors from the global generator
            torch.manual_seed(0)
            for path, layer in chosen.items():
                order = list(layer._parameters)
                spectral_norm(layer)
                self.orders[path] = order

    def penalty(self, step: Step) -> Tensor:
        return least_volume(step.gather(step.out["code"].flatten(1)), self.eta)

    def teardown(self, model: nn.Module) -> None:
        for path, order in getattr(self, "orders", {}).items():
            layer = model.get_submodule(path)
            with evaluating(layer):  # the weight as it is, without a further power iteration
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            for name in order:  # parameters come in their old order again
                layer._parameters[name] = layer._parameters.pop(name)
        self.orders = {}


def _to_normalise(model: nn.Module, decoder: str) -> dict[str, nn.Module]:
    """The decoder's trained layers by name, without those that are normalised already.

    Raises:
        RecipeError: if there is no such decoder, or it cannot be held to a Lipschitz constant.
    """
    try:
        root = model.get_submodule(decoder)
    except AttributeError:
        known = ", ".join(name for name, _ in model.named_children())
        raise RecipeError(
            f"LeastVolume: the model has no submodule '{decoder}' to hold to a Lipschitz constant; it has {known}. "
            "Name its decoder, or give decoder=None where that is Lipschitz already"
        ) from None
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    chosen: dict[str, nn.Module] = {}
    for name, layer in root.named_modules():
        path = ".".join(filter(None, (decoder, name)))
        if "parametrizations" in name.split("."):
            continue
        if not isinstance(layer, LAYERS):
            trained = any(p is not None and p.requires_grad for p in layer._parameters.values())
            if trained or isinstance(layer, UNBOUNDED):
                raise RecipeError(
                    f"LeastVolume: '{path}' is a {type(layer).__name__}, which nothing keeps from stretching a code "
                    "that has shrunk; build the decoder without it, or give decoder=None and bound it yourself"
                )
            continue
        if parametrize.is_parametrized(layer, "weight"):
            if any(isinstance(p, _SpectralNorm) for p in layer.parametrizations["weight"]):  # type: ignore[index]
                continue
            raise RecipeError(f"LeastVolume and something before it both reparametrise '{path}.weight'; keep one")
        if any(isinstance(hook, SpectralNorm) for hook in layer._forward_pre_hooks.values()):
            continue
        if "weight" not in layer._parameters:  # a hook makes it: torch.nn.utils.weight_norm, pruning
            raise RecipeError(f"LeastVolume and something before it both reparametrise '{path}.weight'; keep one")
        weight = layer.weight
        if not weight.requires_grad:
            continue
        if uses[id(weight)] > 1:
            raise RecipeError(f"LeastVolume: '{path}' shares its weight with another layer; give it one of its own")
        if not weight.any():
            raise RecipeError(f"LeastVolume: the weight of '{path}' is 0 and has no norm to divide by; initialise it")
        chosen[path] = layer
    if not chosen and not any(isinstance(layer, LAYERS) for layer in root.modules()):
        raise RecipeError(f"LeastVolume: '{decoder}' has no linear layer or convolution to normalise")
    return chosen
