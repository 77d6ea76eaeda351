"""wellposed: regularization for PyTorch.

Techniques that compose in any training loop, each with its own evidence; and a workbench that answers which of them
helps a model on its data, how strong, and at what cost.

    import wellposed as wp
    recipe = wp.Recipe(wp.MixUp(alpha=0.4), wp.ELR(rows=len(train), classes=10), wp.SAM(rho=0.05))
    recipe.attach(model, wp.Classify(classes=10))
    for batch in loader:
        terms = recipe.step(batch, optimizer)

The core is imported here; techniques are found by name at first use (``wellposed.SAM``).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .core import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Method,
    NonFiniteError,
    NotConverged,
    PerSample,
    Recipe,
    RecipeError,
    SineStages,
    Step,
    Steps,
    Task,
    WarmUp,
    implements,
    knob,
    load_recipe,
)
from .tasks import (
    Autoencode,
    Autoencoder,
    Classify,
    Denoise,
    Discriminate,
    Generate,
    Likelihood,
    MaskedModel,
    NextToken,
    Policy,
    Prefer,
    Regress,
    Residual,
    TwoViews,
)

__version__ = "0.1.0"

__all__ = [
    "Autoencode",
    "Autoencoder",
    "Classify",
    "Constant",
    "Cosine",
    "Denoise",
    "Discriminate",
    "Exponential",
    "Generate",
    "Likelihood",
    "Linear",
    "MaskedModel",
    "Method",
    "NextToken",
    "NonFiniteError",
    "NotConverged",
    "PerSample",
    "Policy",
    "Prefer",
    "Recipe",
    "RecipeError",
    "Regress",
    "Residual",
    "SineStages",
    "Step",
    "Steps",
    "Task",
    "TwoViews",
    "WarmUp",
    "implements",
    "knob",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    from .core.registry import FAMILIES, load_all

    if name.startswith("_") or name in FAMILIES:  # private names, and families that exist import themselves
        raise AttributeError(f"module 'wellposed' has no attribute '{name}'")
    module = load_all().get(name)
    if module is None:
        raise AttributeError(f"wellposed has no '{name}'; wellposed.core.registry.load_all() lists every technique")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    from .core.registry import load_all

    return sorted({*__all__, *load_all()})
