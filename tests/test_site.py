"""The generated part of the site: what its pages say, and what a real browser makes of them."""

from __future__ import annotations

import ast
import copy
import html
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
import torch

import wellposed as wp
from wellposed.core import citing
from wellposed.core.card import card
from wellposed.core.registry import FAMILIES, catalogue, parts_of
from wellposed.papers import evidence, papers
from wellposed.papers.site import build, cards, indexes
from wellposed.papers.site.formulas import display, mathml
from wellposed.papers.site.plots import COLORS, plot, standalone
from wellposed.papers.site.reference import shown
from wellposed.papers.site.words import first_sentence, plain

ROOT = Path(__file__).parents[1]
SOME = "elr,sam,upgrad,nested-dropout-noisy-labels,a2mim,ab-cache"  # papers of the site that is built here
METHODS = [name for name, cls in catalogue().items() if cls.family in FAMILIES]
CITED = {part.__name__: part for parts in citing.parts.values() for part in parts}
PARTS = {**{name: catalogue()[name] for name in METHODS}, **CITED}


# ---- cards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_formula_can_be_shown(name: str) -> None:
    formula = card(PARTS[name]).formula
    assert formula or not PARTS[name].paper, f"{name} cites a paper, and its card has no section Formula"
    assert display(formula).count("<math ") == len(formula.splitlines())


def test_what_is_no_formula_is_refused() -> None:
    assert "<mfrac>" in mathml(r"\frac{1}{2}")
    assert "arg</m" in mathml(r"\arg\max_x f(x)")
    for wrong in (r"\nosuchcommand{x}", r"\frac{1"):
        with pytest.raises(ValueError, match="no formula"):
            mathml(wrong)


def test_the_reference_shows_formulas() -> None:
    text = shown("Line.\n\nComputes:\n    words.\n\nFormula:\n    x^2\n    y_1\n\nHelps:\n    always.\n")
    assert text.count("<math ") == 2
    assert text.startswith("Line.\n\nComputes:\n    words.\n\nFormula:\n    <figure")
    assert text.endswith("\n\nHelps:\n    always.\n")


@pytest.fixture(scope="module")
def problems() -> ModuleType:
    """The small problems of the contract suite."""
    spec = importlib.util.spec_from_file_location("problems_of_site", ROOT / "tests/contract/problems.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", METHODS)
def test_the_snippet_of_a_method_runs(name: str, problems: ModuleType) -> None:
    cls = catalogue()[name]
    example = {key: value for key, value in cls.example.items() if key != "model"}
    ast.parse(cards.snippet(cls))
    code = cards.snippet(cls, **example)  # what is on the page, with values that suit a small problem
    kind = problems.kind_of(name)
    torch.manual_seed(0)
    model = problems.build(kind, False).double()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    space = {"model": model, "task": problems.make_task(kind), "batch": problems.make_batch(kind)}
    first, last, end = code.rpartition("terms = ")
    exec(first, space)
    space["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(last + end, space)
    assert space["terms"]["total"].isfinite()
    after = space["recipe"].finish().state_dict()
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("name", sorted(CITED))
def test_the_snippet_of_another_part_names_it(name: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(cards.snippet(CITED[name]))) if isinstance(node, ast.Call)][:1]
    assert ast.unparse(call.func) == f"wp.{name}"
    assert getattr(wp, name) is CITED[name]


def test_the_snippet_of_a_task_attaches_it() -> None:
    model, logged = torch.nn.Linear(4, 3), {"cost": -torch.ones(8), "propensity": torch.full((8,), 1 / 3)}
    batch = {"x": torch.randn(8, 4), "action": torch.arange(8) % 3, **logged}
    space = {"model": model, "batch": batch, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    exec(cards.snippet(wp.SmoothedIPS), space)
    assert space["terms"]["task"] < 0


def test_a_card_says_everything() -> None:
    page = cards.paper_page("elr", "<svg></svg>")
    said, found = card(wp.ELR), evidence.read("elr")
    assert found is not None
    for part in (
        papers()["elr"]["title"], "arXiv 2007.00151", "objectives", said.summary, said.cost, "<math ",
        "wp.ELR(rows=12, classes=3)", "| `beta` | `0.7` |", "worth trying: `1.0`, `3.0`, `7.0`", plain(said.reference),
        plain(said.helps), plain(said.avoid), plain(found["statement"]), plain(found["arena"]),
        plain(evidence.in_words(found)), "seeds 100 to ", "<svg></svg>",
    ):  # fmt: skip
        assert part in page, part


def test_a_planned_paper_has_a_short_card() -> None:
    id = next(id for id in papers() if not parts_of(id))
    page = cards.paper_page(id, None)
    assert plain(papers()[id]["mechanism"]) in page
    assert 'class="status planned"' in page
    assert "## " not in page


HOSTILE = "a_b_c *d* `e` <script>x</script> [f](g) | h & i # j 1. k \\ l"


@pytest.mark.parametrize("text", [HOSTILE, "1. first", "- x <- y", "+ a", "t' = |w|^2 (p_y^(tau-1) - 1) / (1 - tau)"])
def test_text_stays_text(text: str) -> None:
    from markdown import markdown  # type: ignore[import-untyped]

    shown = markdown(f"{plain(text)}\n\n| a |\n| --- |\n| {plain(text)} |", extensions=["tables"])
    assert not re.search(r"<(?!/?(p|code|table|thead|tbody|tr|th|td)\b)", shown)
    once, again = re.findall(r"<(?:p|td)>(.*?)</(?:p|td)>", shown)
    assert once == again
    assert html.unescape(re.sub(r"</?code>", "`", once)) == text


def test_first_sentence() -> None:
    assert first_sentence("Two passes; one copy. More.") == "Two passes"
    assert first_sentence("About 2.6 passes.") == "About 2.6 passes"


# ---- drawings --------------------------------------------------------------------------------------------------------

SHARED = {"id": "x", "statement": "A < B.", "quantity": "error", "verdict": "PASS", "seeds": [1, 2, 3, 4, 5],
          "seconds": 1.0, "estimate": 2.0}  # fmt: skip
JUDGED = {"interval": [1.5, 2.5], "differences": [1.5, 1.9, 2.0, 2.2, 2.4], "margin": 0.5}
RECORDS: dict[str, dict[str, Any]] = {
    "paired": {"direction": "higher", **JUDGED,
               "arms": {"with": {"error": [5, 6, 7, 6, 5]}, "without": {"error": [3, 4, 5, 4, 3]}}},
    "exact": {"tolerance": 1e-9, "arms": {"errors": {"value": [1e-12, 0.0, 3e-13], "gradient": [1e-10] * 3}}},
    "curve": {**JUDGED, "curve": {"swept": "width", "x": [1, 10, 100], "seeds": {"test": [[3, 2, 1], [3, 4, 1]]},
                                  "mean": {"test": [3, 3, 1]}}},
    "cost": {"tolerance": 0.6, "ratios": {"passes": [0.5, 0.4]}, "arms": {}},
}  # fmt: skip


def record(kind: str) -> dict[str, Any]:
    return copy.deepcopy({**SHARED, "kind": kind, **RECORDS[kind]})


@pytest.mark.parametrize("kind", sorted(RECORDS))
def test_a_drawing_is_named_and_the_same_again(kind: str) -> None:
    found = record(kind)
    svg = plot(found)
    assert plot(found) == svg
    root = ElementTree.fromstring(svg)
    title, desc = root[0], root[1]
    assert (title.text, desc.text) == ("A < B.", evidence.in_words(found))
    assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert not re.search(r"#[0-9a-fA-F]{6}|base64", svg)  # every colour is the page's
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLORS)
    assert set(re.findall(r'href="#([^"]*)"', svg)) <= set(re.findall(r' id="([^"]*)"', svg))
    assert len(svg) < 20_000
    alone = standalone(svg)
    assert ElementTree.fromstring(alone).tag.endswith("svg")
    assert "prefers-color-scheme:dark" in alone


PLACES = {"paired": ("arms", "with", "error"), "exact": ("arms", "errors", "value"), "cost": ("ratios", "passes"),
          "curve": ("curve", "seeds", "test", 0)}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(RECORDS))
def test_every_value_is_drawn(kind: str) -> None:
    changed = record(kind)
    values: Any = changed
    for key in PLACES[kind]:
        values = values[key]
    values[0] *= 1.02
    assert plot(changed) != plot(record(kind))


def test_the_names_of_many_series_stay_inside() -> None:
    found = record("curve")
    for part in ("seeds", "mean"):
        found["curve"][part] = {f"series {i}": found["curve"][part]["test"] for i in range(5)}
    lines = re.findall(r'y="([-.\d]+)"[^>]*>series \d<', plot(found))
    assert len(lines) == 5
    assert min(map(float, lines)) >= 10  # the height of a letter


def test_what_failed_looks_different() -> None:
    passed, failed = (plot(record("paired") | {"verdict": verdict}) for verdict in ("PASS", "FAIL"))
    assert "var(--better)" in passed
    assert "var(--better)" not in failed
    assert "var(--worse)" in failed


def test_pages_and_files_have_the_same_colours() -> None:
    css = (ROOT / "docs/assets/site.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in re.findall(r"\{([^{}]*--ink[^{}]*)\}", css))
    assert {tone: (light[tone], dark[tone]) for tone in light} == COLORS


# ---- indexes ---------------------------------------------------------------------------------------------------------


def test_every_paper_is_counted_once() -> None:
    table = indexes.counts(sorted(papers()))
    assert sum(map(int, re.findall(r"\| (\d+) \|", table))) == len(papers())


def test_every_paper_stands_in_its_family_and_under_its_symptoms() -> None:
    ids = sorted(papers())
    pages = {family: indexes.family_page(family, [i for i in ids if papers()[i]["family"] == family])
             for family in FAMILIES}  # fmt: skip
    symptoms = indexes.symptoms_page(ids)
    for id, row in papers().items():
        assert f"(../papers/{id}.md)" in pages[row["family"]]
        assert symptoms.count(f"(papers/{id}.md)") == len(row["symptoms"])


def test_the_gallery_shows_what_was_measured() -> None:
    records = {id: found for id in papers() if (found := evidence.read(id))}
    page = indexes.gallery_page(records)
    assert re.findall(r"\(plots/(.*?)\.svg\)", page) == re.findall(r"\]\(papers/(.*?)\.md\)", page)
    assert set(re.findall(r"\(plots/(.*?)\.svg\)", page)) == set(records)


# ---- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of a few papers, built as ``make docs`` builds all."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, build.ONLY: SOME, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


class Page(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


def test_the_pages_are_there(site: Path) -> None:
    assert {f.stem for f in (site / "papers").iterdir()} == set(SOME.split(","))
    for family in build.packages():
        assert (site / "api" / f"{family}.html").exists()
    for name in ("gallery.html", "symptoms.html", "families/objectives.html", "techniques/MixUp.html", "plots/elr.svg"):
        assert (site / name).exists(), name
    assert "papers, 6 in all" in (site / "index.html").read_text()


def test_no_page_loads_anything_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    loaded = 0
    for file, page in pages.items():
        for tag, attrs in page.tags:
            if tag in ("script", "img", "link", "iframe", "source", "object", "embed") or "src" in attrs:
                for value in (attrs.get("src"), attrs.get("href")):
                    assert value is None or not re.match(r"(https?:)?//", value), (file.name, tag, attrs)
                    loaded += value is not None
    assert loaded > 100
    for file in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", file.read_text("utf-8")), file


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    ids = {file: {attrs["id"] for _, attrs in page.tags if "id" in attrs} for file, page in pages.items()}
    checked = 0
    for file, page in pages.items():
        for tag, attrs in page.tags:
            for link in (attrs.get("href"), attrs.get("src")):
                parts = urlsplit(link or "")
                if link is None or parts.scheme or parts.netloc or file.name == "404.html" or tag == "use":
                    continue
                target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
                target = target / "index.html" if target.is_dir() else target
                assert target.exists(), f"{file.relative_to(site)}: {link}"
                if parts.fragment and target in ids and not parts.fragment.startswith("__"):
                    assert parts.fragment in ids[target], f"{file.relative_to(site)}: {link}"
                checked += 1
    assert checked > 1000


# ---- in a real browser -----------------------------------------------------------------------------------------------

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--v=0", "--virtual-time-budget=8000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom",
)  # fmt: skip
browser = pytest.mark.browser


def shown_by(address: str, folder: Path) -> tuple[str, list[str]]:
    """The document chromium makes of an address, and the messages on its console."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None and os.environ.get("CI"):  # there it must never be left out
        pytest.fail("chromium is not installed, and the site must be tested in a browser: .ci/run installs it")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium to test the site in a browser")
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and at /frames a page that looks into some of its pages at 320 pixels."""

    frames: bytes = b""

    def do_GET(self) -> None:
        if self.path != "/frames":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.frames)))
        self.end_headers()
        self.wfile.write(self.frames)
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(site: Path) -> Iterator[str]:
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()
    thread.join()


LOOK = """
  const look = (frame) => {
    const page = frame.contentDocument, box = (what) => page.querySelector(what)?.getBoundingClientRect();
    const size = (what) => { const b = box(what); return b ? [b.width, b.height] : null; };
    const images = [...page.querySelectorAll("article img")];
    for (const image of images) image.loading = "eager";
    return { width: page.documentElement.scrollWidth, formula: size("math[display=block]"), plot: size("svg.plot"),
             marks: page.querySelectorAll("svg.plot :is(path, use)").length, images: images.length };
  };
  addEventListener("load", () => setTimeout(() => {
    const frames = [...document.querySelectorAll("iframe")];
    const found = frames.map(look);
    setTimeout(() => {
      const images = frames.map((frame) =>
        [...frame.contentDocument.querySelectorAll("article img")].filter((i) => i.naturalWidth > 0).length);
      const asked = frames.flatMap((frame) =>
        frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name));
      document.body.dataset.found = JSON.stringify([found.map((f, i) => ({ ...f, loaded: images[i] })), asked]);
    }, 1500);
  }, 1500));
"""


def frames(server: str, addresses: list[str], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What pages look like at 320 pixels, and all addresses they asked for."""
    inside = "".join(f'<iframe src="{a}" style="border:0;width:320px;height:900px"></iframe>' for a in addresses)
    Handler.frames = f'<!DOCTYPE html><meta charset="utf-8">{inside}<script>{LOOK}</script>'.encode()
    dom, console = shown_by(f"{server}/frames", folder)
    assert console == []
    (data,) = re.findall(r'data-found="([^"]*)"', dom)
    found, asked = json.loads(html.unescape(data))
    return found, asked


@browser
def test_pages_fit_a_phone_and_show_formula_and_drawing(server: str, tmp_path: Path) -> None:
    names = [
        "papers/elr", "papers/upgrad", "gallery", "symptoms", "families/objectives", "index", "noisy-labels",
        "api/objectives", "techniques/MixUp",
    ]  # fmt: skip
    seen, asked = frames(server, [f"/{name}.html" for name in names], tmp_path)
    found = dict(zip(names, seen, strict=True))
    assert {name: page["width"] for name, page in found.items()} == dict.fromkeys(names, 320)
    for name in ("papers/elr", "papers/upgrad"):
        assert found[name]["formula"][0] > 40
        assert found[name]["formula"][1] > 10
        assert 200 < found[name]["plot"][0] <= 320
        assert found[name]["marks"] > 10
    assert found["api/objectives"]["formula"][1] > 10
    measured = [id for id in SOME.split(",") if evidence.read(id)]
    assert found["gallery"]["images"] == found["gallery"]["loaded"] == len(measured) >= 3
    assert len(asked) > 50
    assert [address for address in asked if not address.startswith(server)] == []


@browser
def test_search_works_in_a_folder(site: Path, tmp_path: Path) -> None:
    dom, console = shown_by(f"{(site / 'papers/sam.html').as_uri()}?q=noisy+labels", tmp_path)
    assert console == []
    results = re.findall(r'<a href="([^"?#]*)[^"]*" class="md-search-result__link"', dom)
    assert f"{site.as_uri()}/papers/elr.html" in list(dict.fromkeys(results))[:2]


@browser
def test_what_must_not_be_is_noticed(site: Path, server: str, tmp_path: Path) -> None:
    broken = site / "broken.html"
    broken.write_text(
        "<script src='https://example.org/x.js'></script><p style='width: 400px'>wide</p><math display='block'></math>"
    )
    (page,), asked = frames(server, ["/broken.html"], tmp_path)
    assert page["width"] > 320
    assert "https://example.org/x.js" in asked
    broken.write_text("<script>throw new Error('on purpose')</script>")
    _, console = shown_by(broken.as_uri(), tmp_path)
    assert any("on purpose" in line for line in console)
    broken.unlink()
