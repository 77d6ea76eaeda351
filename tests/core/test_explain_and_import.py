"""explain(), and the weight of the import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from core_methods import (
    CLASSES,
    Activity,
    Average,
    ClipNorm,
    Consistency,
    HalfWeight,
    SquaredWeights,
    TimesLogits,
    TimesLoss,
    TimesX,
    net,
)  # fmt: skip

import wellposed as wp


def test_explain_tells_the_composed_step_slot_by_slot() -> None:
    methods = [
        HalfWeight(), TimesX(), TimesLogits(), TimesLoss(), SquaredWeights(strength=0.25),
        Activity(strength=wp.WarmUp(2.0)), Consistency(), wp.SAM(), ClipNorm(), Average(),
    ]  # fmt: skip
    recipe = wp.Recipe(*methods).attach(net(), wp.Classify(CLASSES))
    assert recipe.explain().splitlines()[1:] == [
        "once      setup: HalfWeight -> Average",
        "gradient  SAM (",
        "gradient    ClipNorm (",
        "batch         TimesX",
        "forward       Classify: logits",
        "outputs       TimesLogits",
        "loss          Classify -> TimesLoss",
        "penalty       + 0.25 * SquaredWeights  [params]",
        "penalty       + WarmUp(value=2.0, portion=0.1) * Activity  [sample]",
        "penalty       + 0.5 * Consistency  [sample]",
        "backward      into .grad ))",
        "step      the optimizer",
        "update    Average",
        "cost      about 3 passes (1 = plain training); usable from tier 'optimizer' up",
    ]
    assert recipe.explain().splitlines()[0] == repr(recipe)


def test_explain_of_the_empty_and_the_unattached_recipe() -> None:
    text = wp.Recipe().explain()
    assert text.splitlines()[0] == "Recipe()"
    assert "cost      about 1 passes" in text
    assert "tier 'objective'" in text
    assert "penalty" not in text
    swapped = wp.Recipe(ClipNorm(), wp.SAM()).explain().splitlines()
    assert swapped[1:3] == ["gradient  ClipNorm (", "gradient    SAM ("], "the first listed is outermost"


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_import_is_light() -> None:
    """No library of the workbench, no compiler, and no technique is loaded before it is asked for."""
    code = "import sys, torch; before = set(sys.modules); import wellposed; print(*sorted(set(sys.modules) - before))"
    loaded = fresh(code).split()
    heavy = "scipy sklearn pandas matplotlib torchvision jinja2 rich typer PIL pyarrow torch._dynamo torch._inductor"
    assert not set(heavy.split()) & {m for name in loaded for m in (name, name.partition(".")[0])}
    assert "wellposed.core.recipe" in loaded
    assert not [m for m in loaded if m.startswith("wellposed.") and m.split(".")[1] not in {"core", "tasks"}]


@pytest.mark.slow
def test_the_import_adds_less_than_150_ms_to_torch() -> None:
    """Smallest of several fresh processes, since the machine may be busy."""
    code = "import time, torch; t = time.perf_counter(); import wellposed; print(time.perf_counter() - t)"
    assert min(float(fresh(code)) for _ in range(5)) < 0.150


def test_everything_public_is_there() -> None:
    for name in wp.__all__:
        assert getattr(wp, name) is not None
    assert {"SAM", "ELR", *wp.__all__} <= set(dir(wp))
    with pytest.raises(AttributeError, match="has no attribute '_nothing'"):
        _ = wp._nothing
