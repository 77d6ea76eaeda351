"""What compare plans: as much as the budget holds, and the same when it is taken up again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wellposed.workbench import compare, rows
from wellposed.workbench.plan import BASELINE, Plan, Row, make_plan


def costs_of(n: int) -> dict[str, dict[str, Any]]:
    return {BASELINE: {"time": 1.0}, **{f"r{i}": {"time": 1.0 + i} for i in range(n)}}


def planned(costs: dict[str, dict[str, Any]], budget: float, reasons: dict[str, str]) -> Plan:
    rows = [Row(id, why_not=reasons.get(id, "")) for id in costs if id != BASELINE]
    return make_plan(rows, {id: c["time"] for id, c in costs.items()}, budget_seconds=budget)


@pytest.mark.parametrize(("budget", "left"), [(1e9, 40), (500.0, 14), (1.0, compare.FEWEST)])
def test_the_dearest_techniques_stay_out_until_the_budget_holds_the_rest(budget: float, left: int) -> None:
    costs = costs_of(40)
    plan = compare.fitted(partial(planned, costs, budget), costs, {})
    assert [row.id for row in plan.rows] == [f"r{i}" for i in range(left)]
    assert plan.over_budget == (budget == 1.0)
    if left < 40:
        assert "a step takes 40.0 times a plain one" in plan.not_applicable[-1].why_not
        assert "--methods all" in plan.not_applicable[-1].why_not


def test_the_default_is_what_the_scores_show() -> None:
    default = {row.id for row in rows.parse("default")}
    everything = {row.id for row in rows.parse("all")}
    assert default < everything
    assert default >= {"elr", "sam", "vat", "dropout", "l2", "labelsmoothing"}  # and the plain yardsticks
    assert not default & {"splade", "sorsa", "upgrad", "lwf"}  # size, fine-tuning, several losses, forgetting


def test_a_plan_taken_up_again_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans rest on measured times, so these are kept: a second, busier moment must not change what is compared."""
    request = compare.Request(methods="elr,sam", epochs=1, train_size=60, budget="1h", jobs=1, out=tmp_path)
    first, _ = compare.compare(request, Console(quiet=True))
    monkeypatch.setattr(compare, "dry_runs", lambda *args: pytest.fail("measured again"))
    second, _ = compare.compare(request, Console(quiet=True))
    for document in (first, second):
        for key in ("seconds", "started", "environment"):
            del document[key]
    assert json.dumps(first["plan"]) == json.dumps(second["plan"])
    assert first["rows"] == second["rows"]
