"""The documentation runs: every python block of every page in order, and every example in a docstring."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import pkgutil
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

import wellposed
from wellposed.core import method
from wellposed.papers.site import build

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
GROUPS: list[Any] = []
MODULES = [m.name for m in pkgutil.walk_packages(wellposed.__path__, "wellposed.") if not m.name.endswith("__main__")]


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and text of the python blocks to run; a block that cannot run here says why in a comment above it."""
    text = page.read_text()
    found = [m for m in FENCE.finditer(text) if m["kind"] == "python" and not m["mark"]]
    return [(text.count("\n", 0, m.start("code")), m["code"]) for m in found]


def kept(begin: Callable[..., None]) -> Callable[..., None]:
    """``init_process_group`` whose groups live as long as this process.

    One that dies with the last DDP wrapper waits, holding the interpreter's lock, for threads that may want that lock.
    """

    def begun(*arguments: str) -> None:
        begin(*arguments)
        GROUPS.append(dist.group.WORLD)

    return begun


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the results of a comparison in it, an environment as torchrun makes it, and nothing kept."""
    spec = importlib.util.spec_from_file_location("sample", ROOT / "tests/workbench/sample_results.py")
    assert spec is not None
    assert spec.loader is not None
    sample = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sample)
    (tmp_path / "results.json").write_text(json.dumps(sample.sample()))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(dist, "init_process_group", kept(dist.init_process_group))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield tmp_path
    for name in [name for name, cls in method.methods.items() if cls.__module__ == "page"]:
        del method.methods[name]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_of_page(page: Path, somewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a page may open a file in passing
        for line, code in blocks(page):
            exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)


def test_pages_with_code_are_found() -> None:
    run = {p.name: len(blocks(p)) for p in PAGES}
    assert all(run[name] for name in ("README.md", "quickstart.md", "concepts.md", "integrations.md", "tasks.md"))
    assert run["noisy-labels.md"] == 3
    assert run["evidence.md"] == 3


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module(name: str) -> None:
    torch.manual_seed(0)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_every_task_has_an_example() -> None:
    from wellposed import Task, tasks

    text = (ROOT / "docs/tasks.md").read_text()
    headings = " ".join(line for line in text.splitlines() if line.startswith("## "))
    for name in tasks.__all__:
        found = getattr(tasks, name)
        if isinstance(found, type):
            assert ">>>" in (found.__doc__ or ""), f"{name} has no example"
            assert not issubclass(found, Task) or name in headings, f"{name} is missing in docs/tasks.md"


def test_every_family_has_a_page_in_the_reference() -> None:
    packages = {p.parent.name for p in (ROOT / "src/wellposed").glob("*/__init__.py")}
    assert packages - {"core", "papers", "tasks", "workbench"} == set(build.packages())
    for written in ("core", "tasks"):
        assert f"::: wellposed.{written}" in (ROOT / f"docs/api/{written}.md").read_text()


def test_links_lead_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.ONLY, "elr")  # the one card that pages link to as an example
    generated = {(ROOT / "docs" / place).resolve() for place in build.pages()}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                place = (page.parent / target).resolve()
                assert place.exists() or place in generated, f"{page.name}: {target}"
