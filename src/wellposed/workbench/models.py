"""The network that `compare` trains: a small sensible one for each kind of data, or the user's own."""

import inspect
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..core.modes import evaluating
from .data import Data, Split
from .data.importing import describe, resolve
from .errors import BadInput

NAMES = ("mlp", "cnn", "transformer")


def build(spec: str | None, data: Data, split: Split, seed: int) -> nn.Module:
    """A freshly initialised network for the inputs and targets of `split`.

    `spec` is one of `NAMES`; `package.module:function` (or an `nn.Module` class); or None for the default: an
    `mlp` for rows of numbers, flat scans included, a `cnn` for images, a `transformer` for text. The user's
    function is called with those keyword arguments it names among `features` or `in_features` (numbers in one
    input; for text, characters known), `classes` or `out_features` (outputs; 1 for regression) and `shape` (of
    one input, without the batch).

    The network maps (B, *shape) to logits (B, classes), values (B,), or logits (B, length, classes) for text.
    Its weights are a pure function of `seed`; the global random state is left as it was. Raises `BadInput` for
    an unknown name, one that does not fit the data, or a function that does not give such a network.
    """
    shape = tuple(split.x_train.shape[1:])
    outputs = len(data.classes) if data.classes is not None else 1
    if spec is None:
        spec = "transformer" if data.kind == "text" else "mlp" if len(shape) == 1 else "cnn"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _own(spec, data, split, outputs) if ":" in spec else _named(spec.lower(), data, shape, outputs)


def _named(name: str, data: Data, shape: tuple[int, ...], outputs: int) -> nn.Module:
    if name not in NAMES:
        raise BadInput(f"unknown model '{name}': choose {', '.join(NAMES)} or give package.module:function")
    if (name == "transformer") != (data.kind == "text"):
        fitting = "transformer" if data.kind == "text" else "mlp or cnn" if data.image_shape else "mlp"
        raise BadInput(f"model {name} does not fit {data.kind} data: choose {fitting}")
    if name == "transformer":
        return Transformer(outputs, shape[0])
    if name == "mlp":
        return mlp(shape, outputs, squeeze=data.task == "regression")
    if data.image_shape is None:
        raise BadInput(f"model cnn needs images, but {data.name} is a table: choose mlp")
    return cnn(shape, data.image_shape, outputs, squeeze=data.task == "regression")


def mlp(shape: tuple[int, ...], outputs: int, *, width: int = 128, squeeze: bool = False) -> nn.Sequential:
    """Two hidden layers of ReLUs: (B, *shape) to (B, outputs), or (B,) if `squeeze`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(shape) > 1:
        layers["flatten"] = nn.Flatten()
    layers["hidden1"] = nn.Linear(math.prod(shape), width)
    layers["relu1"] = nn.ReLU()
    layers["hidden2"] = nn.Linear(width, width)
    layers["relu2"] = nn.ReLU()
    layers["head"] = nn.Linear(width, outputs)
    if squeeze:
        layers["squeeze"] = nn.Flatten(0)
    return nn.Sequential(layers)


def cnn(
    shape: tuple[int, ...], image_shape: tuple[int, int, int], outputs: int, *, squeeze: bool = False
) -> nn.Sequential:
    """Two convolutions with BatchNorm on images of any size: (B, *shape) to (B, outputs), or (B,) if `squeeze`.

    Flat inputs are first given their `image_shape` (channels, height, width) back.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(shape) == 1:
        layers["image"] = nn.Unflatten(1, image_shape)
    channels = image_shape[0]
    for stage, width in enumerate((16, 32), 1):
        layers[f"conv{stage}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"norm{stage}"] = nn.BatchNorm2d(width)
        layers[f"relu{stage}"] = nn.ReLU()
        if stage == 1:
            layers["pool1"] = nn.MaxPool2d(2, ceil_mode=True)
        channels = width
    layers["pool2"] = nn.AdaptiveAvgPool2d(4)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels * 16, outputs)
    if squeeze:
        layers["squeeze"] = nn.Flatten(0)
    return nn.Sequential(layers)


class Block(nn.Module):
    """A pre-norm transformer block with causal attention: (B, T, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            OrderedDict(expand=nn.Linear(width, 4 * width), gelu=nn.GELU(), contract=nn.Linear(4 * width, width))
        )

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: the fused attention of the CPU has no second derivative, which some techniques take.
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=h.device).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        h = h + self.project(mixed.transpose(1, 2).flatten(2))
        return h + self.feedforward(self.norm2(h))


class Transformer(nn.Module):
    """A small causal language model: ids (B, T <= context) to logits (B, T, characters)."""

    def __init__(self, characters: int, context: int, *, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)
        for table in (self.embedding.weight, self.position):
            nn.init.normal_(table, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def _own(spec: str, data: Data, split: Split, outputs: int) -> nn.Module:
    """Call the user's function and try the network on two rows, so that misfits are told before training."""
    function = resolve(spec, "model")
    shape = tuple(split.x_train.shape[1:])
    features = outputs if data.kind == "text" else math.prod(shape)
    known = {
        "features": features,
        "in_features": features,
        "classes": outputs,
        "out_features": outputs,
        "shape": shape,
    }
    wanted: dict[str, Any] = {}
    for name, parameter in _parameters(function).items():
        if name in known and parameter.kind is not parameter.POSITIONAL_ONLY:
            wanted[name] = known[name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise BadInput(f"model '{spec}' needs an argument '{name}': it is given only {', '.join(known)}")
    try:
        model = function(**wanted)
    except Exception as error:
        raise BadInput(f"model '{spec}': calling it fails with {describe(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"model '{spec}' returned {type(model).__name__}: it must return a torch.nn.Module")

    try:
        with evaluating(model), torch.no_grad():  # so that the trial moves no running statistics
            out = model(split.x_train[:2])
    except Exception as error:
        raise BadInput(f"model '{spec}' fails on inputs of shape (2, {_csv(shape)}) with {describe(error)}") from error

    rows = split.y_train[:2].shape
    expected = rows if data.task == "regression" else (*rows, outputs)
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if data.task == "regression" and found == (*rows, 1):
        return nn.Sequential(OrderedDict(model=model, squeeze=nn.Flatten(0)))
    if found != tuple(expected):
        raise BadInput(f"model '{spec}' turns 2 rows into {found}: {tuple(expected)} is needed for {data.name}")
    return model


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some callables of C have no signature; they are called without arguments
        return {}


def _csv(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
