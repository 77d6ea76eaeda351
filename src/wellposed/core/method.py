"""Method: how learning is regularised. A module that overrides only the slots it acts in."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform

from torch import Tensor, nn

from .schedules import Scalar
from .task import Batch, Outputs, Task

if TYPE_CHECKING:
    from .step import Step

Scope = Literal["sample", "batch", "params"]
SLOTS = ("setup", "batch", "outputs", "loss", "penalty", "gradient", "update")
methods: dict[str, type[Method]] = {}  # every concrete method by class name


def knob(
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    grid: Sequence[Any] = (),
    log: bool = False,
) -> Any:
    """A hyper-parameter with its legal range and the values worth trying.

    Args:
        default: the paper's value; none for what every user must say.
        low, high: closed range of legal values.
        above: open lower bound, in place of ``low``.
        grid: values a search tries, the default among them; empty for what is not tuned.
        log: whether the natural scale is logarithmic.
    """
    return dataclasses.field(
        default=default,
        metadata={"low": low, "high": high, "above": above, "grid": tuple(grid), "log": log},
    )


# knob stays out of the specifiers: checkers would not see its positional default and ask for every argument.
@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class Method(nn.Module):
    """Base of every technique. Concrete methods are final; their hyper-parameters are dataclass fields.

    ``class SAM(Method, paper="sam")`` registers the method and cites catalogue ids (a string or several).

    Attributes:
        scope: how the penalty averages: ``"sample"`` (shape (B,), or a scalar mean over the batch's samples),
            ``"batch"`` (couples samples), ``"params"`` (once per update).
        reads: keys of batch or outputs the method needs.
        writes: keys that its ``batch`` slot puts there, so that a batch need not have them.
        taps: names of submodules whose outputs it looks at; fixed at the latest in ``setup``.
        replaces: whether ``loss`` discards the loss it is given.
        targets: kinds of ``task.target`` it works with; None: any.
        null: field values that turn the method off (the identity of the contract suite); None where there are none.
        exact: whether accumulated microbatches and several ranks give the update of one large batch.
        stops: whether part of its term is held constant on purpose, so that the gradient is not the value's derivative.
        edits: names of parameters it changes in place, known after ``setup``; a reparametrisation of one is refused.
        pretrained: whether it starts from a trained model, which `compare` does not.
        example: settings for a small trial (the contract suite's): field values, and under ``"model"`` the kind of
            model it needs: ``"mlp"`` (default), ``"normed"`` (with BatchNorm), ``"conv"``, ``"rnn"``,
            ``"denoiser"``, ``"regressor"``, ``"restorer"`` (whose outputs are like its inputs), ``"views"`` (of
            ``TwoViews``), ``"preference"`` (of ``Prefer``), ``"autoencoder"`` or ``"variational"`` (of ``Autoencode``),
            ``"ode"`` (with a ``NeuralODE``).
        strength: factor of the penalty, a number or a schedule; a field only where there is a penalty.
    """

    scope: ClassVar[Scope] = "sample"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()
    replaces: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = None
    null: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}
    exact: ClassVar[bool] = True
    stops: ClassVar[bool] = False
    pretrained: ClassVar[bool] = False
    example: ClassVar[Mapping[str, Any]] = {}
    paper: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str] = "user"
    taps: Sequence[str] = ()
    edits: Sequence[str] = ()
    strength: Scalar = 1.0

    def __init_subclass__(cls, *, paper: str | tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__mro__[1] is not Method:
            raise TypeError(f"{cls.__name__}: methods are final; make the variant a field, or a new method")
        cls.paper = (paper,) if isinstance(paper, str) else tuple(paper)
        package, _, rest = cls.__module__.partition(".")
        cls.family = rest.split(".")[0] if package == "wellposed" and rest else "user"
        dataclasses.dataclass(eq=False, kw_only=True, repr=False)(cls)
        methods[cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        self = super().__new__(cls)
        nn.Module.__init__(self)  # before the dataclass __init__ assigns fields
        return self

    def __post_init__(self) -> None:
        for field in fields_of(self):
            check_kind(type(self).__name__, field, getattr(self, field.name))
            check_range(type(self).__name__, field, getattr(self, field.name))
        self.check()

    def check(self) -> None:
        """Conditions that join several fields; raise ValueError."""

    # ---- the seven slots
    def setup(self, model: nn.Module, task: Task) -> None:
        """Once, before compile and DDP: parametrise, copy a teacher, allocate buffers."""

    def batch(self, batch: Batch, step: Step) -> Batch:
        """Edit the data."""
        return batch

    def outputs(self, out: Outputs, step: Step) -> Outputs:
        """Edit activations and logits."""
        return out

    def loss(self, loss: Tensor, step: Step) -> Tensor:
        """(B,) -> (B,): replace or reweight the loss."""
        return loss

    def penalty(self, step: Step) -> Tensor | None:
        """A term to add, times ``strength``."""
        return None

    def gradient(self, compute: Callable[[], None], step: Step) -> None:
        """Around the gradient: call ``compute()`` once, twice, elsewhere."""
        compute()

    def update(self, step: Step) -> None:
        """After the optimizer's step: averages, projections, masks."""

    # ---- the end of a method's life
    def teardown(self, model: nn.Module) -> None:
        """Undo ``setup``: the model computes what it computed, without a trace of the method."""

    def evaluation_state(self) -> Mapping[str, Tensor] | None:
        """Values, by name in the model's state dict, to evaluate and ship instead of the trained ones."""
        return None

    # ---- facts
    def passes(self) -> float:
        """Forward-backward passes of one update, 1 for plain training (a forward alone counts 1/3)."""
        return 1.0

    @classmethod
    def slots(cls) -> tuple[str, ...]:
        """The slots this method overrides."""
        return tuple(s for s in SLOTS if getattr(cls, s) is not getattr(Method, s))

    @classmethod
    def tier(cls) -> str:
        """The least intrusive way it can be used: ``"objective"`` or ``"optimizer"`` (see Recipe)."""
        return "optimizer" if {"gradient", "update"} & set(cls.slots()) else "objective"

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters that differ from their defaults, in order of declaration."""
        found = {}
        for field in fields_of(self):
            value, default = getattr(self, field.name), default_of(field)
            if field.init and not (value is default or value == default):
                found[field.name] = value
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


def fields_of(method: Method | type[Method]) -> tuple[dataclasses.Field, ...]:
    """The hyper-parameters a method declares."""
    return dataclasses.fields(method)  # type: ignore[arg-type]


def default_of(field: dataclasses.Field) -> Any:
    """The default of a hyper-parameter; ``dataclasses.MISSING`` for what every user must say."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def check_kind(owner: str, field: dataclasses.Field, value: Any) -> None:
    """Raise ValueError where the value of a field annotated as a number or a switch is something else."""
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    fits = {
        "int": (isinstance(value, numbers.Integral) and number, "a whole number"),
        "float": (number, "a number"),
        "bool": (isinstance(value, bool), "True or False"),
        "Scalar": (number or callable(value), "a number or a schedule"),
    }
    fine, wanted = fits.get(kind, (True, ""))
    if not fine:
        raise ValueError(f"{owner}: {field.name} must be {wanted}, got {value!r}")


def check_range(owner: str, field: dataclasses.Field, value: Any) -> None:
    """Raise ValueError where a number lies outside the range its ``knob`` declares."""
    meta = field.metadata
    if "low" not in meta or isinstance(value, bool) or not isinstance(value, int | float):
        return
    if meta["above"] is not None:
        if not meta["above"] < value <= meta["high"]:
            raise ValueError(f"{owner}: {field.name} must be above {meta['above']:g}, got {value:g}")
    elif not meta["low"] <= value <= meta["high"]:
        span = f"{meta['low']:g} to {meta['high']:g}" if meta["high"] < math.inf else f"at least {meta['low']:g}"
        raise ValueError(f"{owner}: {field.name} must be {span}, got {value:g}")
