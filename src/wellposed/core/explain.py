"""A recipe's step, told slot by slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .method import Method
    from .recipe import Recipe


def explain(recipe: Recipe) -> str:
    """The composed step as text; names the laws where more than one method meets them."""

    def chain(slot: str) -> str:
        return " -> ".join(recipe.name_of(m) for m in recipe._on[slot])

    lines = [f"{recipe!r}"]
    task = type(recipe.task).__name__ if recipe.attached else "task"
    if recipe._on["setup"]:
        lines.append(f"once      setup: {chain('setup')}")
    opened = ""
    for m in recipe._on["gradient"]:
        lines.append(f"gradient  {opened}{recipe.name_of(m)} (")
        opened += "  "
    if recipe._on["batch"]:
        lines.append(f"batch     {opened}{chain('batch')}")
    yields = ", ".join(recipe.task.yields) if recipe.attached else "outputs"
    lines.append(f"forward   {opened}{task}: {yields}")
    if recipe._on["outputs"]:
        lines.append(f"outputs   {opened}{chain('outputs')}")
    lines.append(f"loss      {opened}{task}" + (f" -> {chain('loss')}" if recipe._on["loss"] else ""))
    lines += [f"penalty   {opened}+ {_strength(m)} * {recipe.name_of(m)}  [{m.scope}]" for m in recipe._on["penalty"]]
    lines.append(f"backward  {opened}into .grad" + (" " + ")" * len(recipe._on["gradient"]) if opened else ""))
    lines.append("step      the optimizer")
    if recipe._on["update"]:
        lines.append(f"update    {chain('update')}")
    passes = 1 + sum(m.passes() - 1 for m in recipe.listed)
    tier = "objective" if all(m.tier() == "objective" for m in recipe.listed) else "optimizer"
    lines.append(f"cost      about {passes:.3g} passes (1 = plain training); usable from tier '{tier}' up")
    return "\n".join(lines)


def _strength(m: Method) -> str:
    return repr(m.strength) if callable(m.strength) else f"{m.strength:g}"
