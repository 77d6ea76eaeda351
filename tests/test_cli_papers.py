"""`wellposed papers`, `search` and `show` as a user meets them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import validate  # type: ignore[import-untyped]
from torch import Tensor

import wellposed as wp
from wellposed.cli import main
from wellposed.core import citing
from wellposed.core.registry import FAMILIES, parts_of
from wellposed.papers import evidence, papers
from wellposed.papers.status import status_of
from wellposed.workbench import listing
from wellposed.workbench.listing import STATUSES, cut

Call = Callable[..., tuple[int, str, str]]
PAPERS = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "title", "family", "kind", "status", "parts", "evidence"],
        "properties": {
            "id": {"type": "string"},
            "title": {"type": "string"},
            "family": {"enum": list(FAMILIES)},
            "kind": {"enum": ["method", "study", "system", "architecture"]},
            "status": {"enum": list(STATUSES)},
            "parts": {"type": "array", "items": {"type": "string"}},
            "evidence": {"type": ["object", "null"], "required": ["verdict", "seeds", "code"]},
        },
    },
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("COLUMNS", "80")

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return called


@pytest.fixture
def planned() -> str:
    """A paper that nothing implements yet."""
    return next((id for id in papers() if not parts_of(id)), "") or pytest.skip("everything is built")


# ---- papers
def test_papers_as_json(call: Call) -> None:
    code, out, err = call("papers", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    validate(rows, PAPERS)
    assert [r["id"] for r in rows] == list(papers())
    by = {r["id"]: r for r in rows}
    assert by["sam"]["parts"] == ["SAM"]
    assert by["elr"]["evidence"] == evidence.read("elr")
    assert all((r["status"] == "planned") == (not r["parts"]) for r in rows)


def test_papers_for_people(call: Call) -> None:
    code, out, _ = call("papers")
    *table, counts = out.splitlines()
    assert code == 0
    assert len(table) == 1 + 505
    assert max(map(len, out.splitlines())) <= 80
    assert all(any(f" {id} " in line for line in table) for id in papers()), "an id was cut"
    assert sum("…" in line for line in table) > 100
    assert counts.startswith("505 papers: ")
    told = [part.split() for part in counts.removeprefix("505 papers: ").split(", ")]
    assert sum(int(n) for n, _ in told) == 505
    assert {status for _, status in told} <= set(STATUSES)


def test_papers_of_a_family_and_status(call: Call) -> None:
    status = status_of("sam")
    rows = json.loads(call("papers", "--family", "smoothness", "--status", status, "--json")[1])
    assert "sam" in {r["id"] for r in rows}
    assert all((r["family"], r["status"]) == ("smoothness", status) for r in rows)
    code, out, _ = call("papers", "--family", "smoothness", "--status", status)
    assert code == 0
    assert out.splitlines()[-1] == f"{len(rows)} papers: {len(rows)} {status}"


@pytest.mark.parametrize(("option", "says"), [("--family", "theory"), ("--status", "verified")])
def test_unknown_family_or_status(option: str, says: str, call: Call) -> None:
    code, out, err = call("papers", option, "nothing")
    assert (code, out) == (2, "")
    assert "'nothing'" in err
    assert says in err, "what there is"


def test_damaged_evidence_is_one_sentence(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elr.json").write_text("{,}")
    monkeypatch.setattr(evidence, "FOLDER", tmp_path)
    code, out, err = call("papers")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "elr.json" in err


def test_damaged_catalogue_is_one_sentence(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import wellposed.papers as package

    (tmp_path / "catalogue.jsonl").write_text('{"id": 3}\n')
    monkeypatch.setattr(package, "files", lambda _: tmp_path)
    papers.cache_clear()
    try:
        code, out, err = call("papers")
    finally:
        monkeypatch.undo()
        papers.cache_clear()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "line 1" in err


def test_papers_imports_nothing_heavy_beyond_torch() -> None:
    code = (
        "import sys\nfrom wellposed.cli import main\ntry:\n    main(['papers', '--family', 'tuning'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'sklearn', 'scipy', 'pandas', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- search
def test_search_as_json(call: Call) -> None:
    code, out, err = call("search", "noisy labels", "--limit", "4", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert len(rows) == 4
    assert rows[0]["id"] == "elr"
    assert rows[0]["parts"] == ["ELR"]
    assert rows[0]["status"] == status_of("elr")
    assert [r["score"] for r in rows] == sorted((r["score"] for r in rows), reverse=True)


def test_search_for_people(call: Call) -> None:
    code, out, err = call("search", "my", "labels", "are", "wrong")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "* elr  objectives, " in out
    assert "`wellposed show ID`" in out
    assert all(line[0] in "* " for line in out.splitlines() if line)


def test_a_star_marks_what_is_built(call: Call, planned: str) -> None:
    for id in (planned, "elr"):
        lines = call("search", papers()[id]["title"])[1].splitlines()
        assert sum(line.startswith(f"{'*' if parts_of(id) else ' '} {id}  ") for line in lines) == 1


def test_typos_give_a_hint(call: Call) -> None:
    code, out, err = call("search", "nosiy lables")
    assert (code, out) == (0, "")
    assert "nothing found; did you mean 'noisy' for 'nosiy'" in err
    code, out, err = call("search", "nosiy labels")
    assert code == 0
    assert out
    assert err == "did you mean 'noisy' for 'nosiy'?\n"


@pytest.mark.parametrize("text", ["qqqqzz", "😀", '"', "", "* AND"])
def test_no_match_says_so(text: str, call: Call) -> None:
    code, out, err = call("search", text)
    assert code == 0
    if not out:
        assert err.startswith("nothing found; ")
        assert "wellposed search my labels are wrong" in err
    assert json.loads(call("search", text, "--json")[1]) == [] or out


def test_limit_must_be_positive(call: Call) -> None:
    code, out, err = call("search", "labels", "--limit", "0")
    assert (code, out) == (2, "")
    assert "--limit" in err


# ---- show
def test_show_a_built_paper(call: Call) -> None:
    code, out, err = call("show", "elr")
    assert (code, err) == (0, "")
    assert f"objectives   {status_of('elr')}" in out
    assert "My labels are wrong." in out
    for section in ("Computes", "Helps", "Avoid", "Defaults", "Cost", "Reference", "Evidence"):
        assert f"\n{section}\n" in out
    assert "Formula" not in out
    assert "\\lVert" not in out
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(call("show", "elr", "--json")[1])
    assert "\\lVert" in found["parts"][0]["card"]["formula"]
    assert found["paper"]["status"] == status_of("elr")
    assert found["evidence"]["elr"]["verdict"] == evidence.read("elr")["verdict"]  # type: ignore[index]


def test_show_what_the_damaged_technique_gave(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, Any] = {**(evidence.read("elr") or {}), "mutation": {"words": "strength 0", "verdict": "FAIL"}}
    monkeypatch.setattr(evidence, "read", lambda id: recorded)
    assert "with strength 0: FAIL" in call("show", "elr")[1]


def test_show_a_planned_paper(call: Call, planned: str) -> None:
    row = papers()[planned]
    code, out, err = call("show", planned.upper())
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    for text in (row["title"], row["mechanism"], row["headline"], "planned", "Not built yet."):
        assert " ".join(text.split()) in said
    found = json.loads(call("show", planned, "--json")[1])
    assert found == {"paper": {**row, "status": "planned"}, "parts": [], "evidence": {planned: evidence.read(planned)}}


def damped(x: Tensor, by: float = 0.5, *, mode: str = "soft") -> Tensor:
    r"""Divide by a number.

    Computes:
        x over by.

    Formula:
        x / \beta

    Helps:
        Never.

    Avoid:
        Always.

    Defaults:
        by 0.5.

    Cost:
        Nothing.

    Reference:
        None.
    """
    return x / by


class Sleepy(torch.nn.Module):
    __doc__ = damped.__doc__


@pytest.fixture
def cited(planned: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The planned paper, implemented by a function and a module, which serves a second paper."""
    monkeypatch.setattr(citing, "parts", {})
    wp.implements(planned)(damped)
    wp.implements(planned, "sam")(Sleepy)
    return planned


def test_show_parts_that_are_no_methods(call: Call, cited: str) -> None:
    code, out, err = call("show", cited)
    assert (code, err) == (0, "")
    assert "built" in out
    assert "damped: Divide by a number." in out
    assert "function test_cli_papers.damped(x, by=0.5, *, mode='soft')" in " ".join(out.split())
    assert "serves sam, too" in out
    found = json.loads(call("show", cited, "--json")[1])
    assert [(p["name"], p["kind"], p["paper"]) for p in found["parts"]] == [
        ("damped", "function", [cited]), ("Sleepy", "module", [cited, "sam"]),
    ]  # fmt: skip
    assert found["parts"][0]["card"]["computes"] == "x over by."
    assert json.loads(call("papers", "--json", "--status", "built")[1]) != []


def test_show_a_part_by_its_name(call: Call, cited: str) -> None:
    found = json.loads(call("show", "DAMPED", "--json")[1])
    assert found["paper"]["id"] == cited
    assert [p["name"] for p in found["parts"]] == ["damped"]
    found = json.loads(call("show", "LabelSmoothing", "--json")[1])
    assert (found["paper"], found["evidence"]) == (None, {})


@pytest.mark.parametrize(("name", "near"), [("samm", "sam"), ("dispersive-los", "dispersive-loss"), ("ΩΩ", "search")])
def test_unknown_name(name: str, near: str, call: Call) -> None:
    code, out, err = call("show", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert near in err


def test_cut() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
    assert cut("abcd  fgh", 7) == "abcd…"


def test_every_paper_can_be_shown() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    for id in papers():
        listing.print_card(listing.describe(id), console)
