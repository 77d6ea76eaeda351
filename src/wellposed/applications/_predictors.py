"""Laws of the next symbol: of causal models, of functions, and of counts that learn while they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..core.modes import evaluating
from ..tasks.classify import logits_of


@runtime_checkable
class Predictor(Protocol):
    """A law of the next symbol that reads along."""

    def start(self) -> None:
        """Back to the beginning of a text."""

    def law(self) -> ArrayLike:
        """Probabilities (V,) of the next symbol."""

    def see(self, symbol: int) -> None:
        """The next symbol is this one."""


class OfHistory:
    """A function of all symbols so far, as a predictor."""

    def __init__(self, function: Callable[[Sequence[int]], ArrayLike]) -> None:
        self.function = function
        self.history: list[int] = []

    def start(self) -> None:
        """Forget the text."""
        self.history = []

    def law(self) -> ArrayLike:
        """What the function says."""
        return self.function(self.history)

    def see(self, symbol: int) -> None:
        """Remember the symbol."""
        self.history.append(symbol)


class CausalPredictor:
    """A causal language model as a predictor: it sees a start token and the last symbols.

    One pass for each symbol, in evaluation mode, the same in encoding and decoding: the model must give the same bits
    for the same input, so both need the same weights, device, versions and number of threads.

    Args:
        model: ids (1, T) to logits (1, T, V), or to an object with ``.logits``.
        start_id: the token that stands before every text.
        memory: symbols it sees, at most; the model takes one token more.
    """

    def __init__(self, model: nn.Module, start_id: int, memory: int) -> None:
        if memory < 1:
            raise ValueError(f"CausalPredictor: memory must be at least 1, got {memory}")
        self.model, self.start_id, self.memory = model, start_id, memory
        self.history: list[int] = []

    def start(self) -> None:
        """Forget the text."""
        self.history = []

    def see(self, symbol: int) -> None:
        """Remember the symbol."""
        self.history.append(symbol)

    @torch.no_grad()
    def law(self) -> NDArray[np.float64]:
        """Probabilities from the last place's logits."""
        ids = torch.tensor([[self.start_id, *self.history[-self.memory :]]], device=self._device())
        with evaluating(self.model):
            logits = logits_of(self.model(ids))
        return logits[0, -1].cpu().double().softmax(-1).numpy()

    @torch.no_grad()
    def log_probs(self, ids: Tensor, rows: int = 64) -> Tensor:
        """Log-probabilities of the symbols of a whole text, (N,): several places a pass, so only nearly those of
        ``law``."""
        ids = ids.to(self._device())
        window = self.memory + 1
        padded = torch.cat([ids.new_tensor([self.start_id]), ids])
        with evaluating(self.model):
            first = self._of_targets(padded[None, :window], ids[None, :window])[0]
            later = ids.unfold(0, self.memory, 1)[1:-1] if len(ids) > window else ids.new_empty(0, self.memory)
            starts = ids.new_full((len(later), 1), self.start_id)
            rest = [
                self._of_targets(torch.cat([s, x], 1), y[:, None], last=True)[:, 0]
                for s, x, y in zip(*(torch.split(v, rows) for v in (starts, later, ids[window:])), strict=True)
            ]
        return torch.cat([first, *rest]).cpu().double()

    def _device(self) -> torch.device:
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _of_targets(self, x: Tensor, y: Tensor, last: bool = False) -> Tensor:
        logits: Tensor = logits_of(self.model(x))
        if last:
            logits = logits[:, -1:]
        logits = logits[:, : y.shape[1]].to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(-1).gather(2, y[..., None])[..., 0]


class WittenBell:
    """Counts of symbols after the last ``order`` ones, that learn while they read, mixed down to shorter contexts.

    The law after a context h seen n times, with d different symbols after it, is (count + s d p') / (n + s d), p' that
    of the context one symbol shorter, 1/V at the end (Witten, Bell 1991, The zero-frequency problem). Exact and
    deterministic, on any machine.

    Args:
        symbols: V.
        order: longest context.
        smoothing: s, above 0: weight of the shorter contexts. 1 is Witten's and Bell's; near 0 an unseen symbol is
            next to impossible.
    """

    def __init__(self, symbols: int = 256, order: int = 5, smoothing: float = 1.0) -> None:
        if symbols < 1 or order < 0 or not smoothing > 0:
            raise ValueError(
                "WittenBell: symbols must be at least 1, order at least 0 and smoothing above 0, got "
                f"{symbols}, {order} and {smoothing}"
            )
        self.symbols, self.order, self.smoothing = symbols, order, smoothing
        self.counts: dict[tuple[int, ...], dict[int, int]] = {}
        self.history: list[int] = []

    def learn(self, ids: Sequence[int] | bytes | Tensor) -> WittenBell:
        """Read a training text, to know it from the start. Returns the model itself."""
        self.start()
        for symbol in as_symbols(ids):
            self.see(symbol)
        self.history = []
        return self

    def start(self) -> None:
        """Unlearn what was read since the start or training."""
        while self.history:
            symbol = self.history.pop()
            for context in self._contexts():
                after = self.counts[context]
                after[symbol] -= 1
                if not after[symbol]:
                    del after[symbol]
                if not after:
                    del self.counts[context]

    def law(self) -> NDArray[np.float64]:
        """Probabilities of the next symbol."""
        p = np.full(self.symbols, 1 / self.symbols)
        for context in self._contexts():
            after = self.counts.get(context)
            if after is None:
                break  # longer contexts were not seen either
            escape = self.smoothing * len(after)
            total = sum(after.values()) + escape
            p *= escape / total
            for symbol, count in after.items():
                p[symbol] += count / total
        return p

    def see(self, symbol: int) -> None:
        """Count the symbol after each of its contexts."""
        for context in self._contexts():
            after = self.counts.setdefault(context, {})
            after[symbol] = after.get(symbol, 0) + 1
        self.history.append(symbol)

    def _contexts(self) -> list[tuple[int, ...]]:
        """The last symbols, from none to ``order`` of them."""
        recent = tuple(self.history[-self.order :]) if self.order else ()
        return [recent[len(recent) - n :] for n in range(len(recent) + 1)]


def as_symbols(symbols: Any) -> list[int]:
    """Bytes, ids (N,) or a sequence of integers as a list.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(symbols, Tensor):
        if symbols.ndim != 1 or symbols.is_floating_point():
            raise ValueError(f"symbols are ids (N,), got {symbols.dtype} of shape {tuple(symbols.shape)}")
        return symbols.tolist()
    if isinstance(symbols, str):
        raise ValueError("symbols are bytes or ids, not text; encode it first")
    return [index(s) for s in symbols]


def as_predictor(model: Any) -> Predictor:
    """A predictor as it is, a function as one of the history.

    Raises:
        TypeError: for a module, or anything else.
    """
    if isinstance(model, Predictor):
        return model
    if isinstance(model, nn.Module):
        raise TypeError("a module needs its start token and memory: CausalPredictor(model, start_id=..., memory=...)")
    if callable(model):
        return OfHistory(model)
    raise TypeError(f"expected a predictor or a function of the symbols so far, got {type(model).__name__}")
