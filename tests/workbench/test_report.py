"""The HTML report: what is in it, that it is safe and self-contained, and that a real browser shows it."""

import ast
import base64
import copy
import hashlib
import html
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_results import HOSTILE, sample

from wellposed.workbench import report

FIGURES = ("ranking", "cost", "curves")
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text of the page without styles and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def document():
    document = sample()
    document["winner"]["snippet"] = report.snippet(document)
    return document


@pytest.fixture(scope="module")
def text(document):
    return report.render(document)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


# ---- contents --------------------------------------------------------------------------------------------------------


def test_everything_is_there_in_order(document, page):
    row = document["rows"][0]
    ranked = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert ranked == ["facts", "ranking", "cost", "curves", "table", "techniques", "recipe", "warnings", "environment"]
    for part in (
        document["headline"], document["command"], document["population"], document["warnings"][0],
        "40% of the training labels are wrong", "26,122 weights", "10 paired: 0 to 9", "+18.8 points",
        row["card"]["computes"], row["paper"]["title"], "arXiv 2010.01412", row["recipe"], "0.5 (chosen)",
        document["winner"]["recipe_toml"], document["winner"]["snippet"], "2.13.0", "the loss became NaN in step 41",
        "needs two losses",
    ):  # fmt: skip
        assert part in page.text, part
    assert len([a for a in page.all("details") if a.get("class") == "card"]) == len(document["rows"])
    assert page.text.index(document["headline"]) < page.text.index(document["command"])


def test_only_the_first_sentence_of_a_long_headline_is_the_title(document):
    long = "ELR helps most: accuracy +25.2 points [+23.2, +27.1], 10 of 10 seeds. It goes beyond early stopping."
    text = report.render(document | {"headline": long})
    assert "<h1>ELR helps most: accuracy +25.2 points [+23.2, +27.1], 10 of 10 seeds.</h1>" in text
    assert '<p class="lede">It goes beyond early stopping.</p>' in text


def test_the_table_ranks_by_gain_and_puts_what_has_no_result_last(document, text):
    body = text[text.index('<table class="ranked">') :].partition("</tbody>")[0]
    names = [html.unescape(name) for name in re.findall(r'<th scope="row".*?<a [^>]*>(.*?)</a>', body)]
    gains = {row["label"]: row["gain"] for row in document["rows"]}
    measured = [gains[name] for name in names[:-3]]
    assert measured == sorted(measured, reverse=True)
    assert names[-3:] == ["NestedDropout", HOSTILE, "UPGrad"]
    assert "early stopping" in names
    widths = {line.count("<td") for line in body.split("<tr")[2:]}
    assert widths == {text.count('<th scope="col"><button') + text.count('<th scope="col" class="text"><button') - 1}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_two_widths_a_name_and_its_numbers(page, name):
    ids = {attrs["id"]: tag for tag, attrs in page.tags if "id" in attrs}
    drawings = [a for a in page.all("svg") if a.get("aria-labelledby", "").startswith(f"{name}-")]
    assert [a["class"] for a in drawings] == ["wide", "narrow"]
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert [ids[id] for id in drawing["aria-labelledby"].split()] == ["title", "desc"]
    assert page.text.count("The numbers of this figure") == len(FIGURES)


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")]
    targets += [id for _, a in page.tags for id in a.get("aria-labelledby", "").split()]
    targets += re.findall(r"url\(#([^)]*)\)", str(page.tags))
    assert len(targets) > 50
    assert set(targets) <= set(ids)


def test_tags_are_closed(page):
    assert page.open == []


def test_a_seed_is_a_dot(document, text):
    wide = text[text.index('<svg class="wide" role="img" aria-labelledby="ranking') :].partition("</svg>")[0]
    rows = [row for row in document["rows"] if row["gain"] is not None]
    seeds = sum(len(row["gains"]) for row in rows)
    assert wide.count("<use") >= seeds + len(rows)


# ---- self-contained, safe, the same again ----------------------------------------------------------------------------


def test_nothing_is_loaded_and_only_our_script_may_run(text, page):
    for tag, attrs in page.tags:
        assert "src" not in attrs, (tag, attrs)
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attrs), attrs
    assert not re.search(r"@import|url\((?!#)", text)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text():
    document = sample()
    evil = "</title></svg></pre></style><script>alert(1)</script>\" onload='x' {{ 7*7 }} $\\frac$"
    evil += "\u0000\u202e\ud800 \U0001f600"  # NUL, right-to-left, a lone surrogate, a letter few fonts have
    document["headline"] = document["command"] = document["population"] = evil
    document["data"]["name"] = document["model"]["name"] = document["data"]["description"] = evil
    document["warnings"] = [evil]
    document["environment"][evil] = evil
    for row in document["rows"]:
        row |= {"label": evil, "name": evil, "why": evil, "recipe": evil, "family": evil}
        row["paper"] = {"id": evil, "title": evil, "arxiv": evil, "year": 2020}
        row["card"] = dict.fromkeys(("summary", "computes", "helps", "not", "defaults", "cost", "reference"), evil)
    document["winner"] |= {"recipe_toml": evil, "snippet": evil}
    text = report.render(document)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.open == []
    assert not any("onload" in attrs for _, attrs in page.tags)
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("alert(1)") > 100


def test_the_same_document_gives_the_same_bytes(document, text):
    assert report.render(copy.deepcopy(document)) == text


def test_fifty_rows_of_twenty_seeds_stay_below_a_megabyte():
    assert len(report.render(sample(techniques=50, seeds=20, epochs=200)).encode()) < 1_000_000


def colors(css: str) -> list[dict[str, str]]:
    light, dark, *_ = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", part)) for part in (light, dark)]


def contrast(a: str, b: str) -> float:
    """Contrast ratio of WCAG 2.2 (relative luminance of sRGB)."""

    def luminance(color: str) -> float:
        c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_can_be_read_in_both_themes(text, theme):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    palette = colors(text)[theme]
    for paper in (palette["paper"], palette["panel"]):
        for name in ("ink", "muted", "link", "better", "tied", "extra", "worse"):  # these also colour letters
            assert contrast(palette[name], paper) >= 4.5, (name, paper)
    for name in ("worth", "equal", "reference"):
        assert contrast(palette[name], palette["paper"]) >= 3, name


# ---- poor documents --------------------------------------------------------------------------------------------------


def test_without_any_result_the_reasons_are_shown():
    document = sample()
    document["rows"] = [row for row in document["rows"] if row["gain"] is None]
    document["baseline"]["curves"] = None
    document["winner"] = None
    page = Page(report.render(document))
    assert not page.all("figure")
    assert "No technique could be measured" in page.text
    assert "the loss became NaN" in page.text
    assert "Take it home" not in page.text


def test_without_curves_or_costs_the_other_figures_remain():
    document = sample()
    document["baseline"]["curves"] = None
    for row in document["rows"]:
        row["curves"] = row["cost"] = None
    assert len(Page(report.render(document)).all("figure")) == 1


def test_only_early_stopping():
    document = sample()
    document["rows"] = [row for row in document["rows"] if row["id"] == "early-stopping"]
    document["winner"] = None
    assert len(Page(report.render(document)).all("figure")) == 3


def test_regression_with_a_metric_to_minimise():
    document = sample()
    document["metric"] = {"name": "rmse", "direction": "min", "unit": ""}
    document["data"] |= {"task": "regression", "classes": None, "label_noise": 0.0}
    document["baseline"]["metrics"] = {"rmse": 66.7, "mae": 50.0, "r2": 0.4}
    for row in document["rows"]:
        row["metrics"] = {}
    page = Page(report.render(document))
    assert "lower is better" in page.text
    assert "none added" in page.text
    assert "R²" in page.text
    assert "ECE" not in page.text
    assert "points" not in page.text.replace(document["headline"], "")


def test_a_wrong_document_is_refused_with_the_place(document):
    wrong = copy.deepcopy(document)
    wrong["rows"][3]["gain"] = "much"
    with pytest.raises(ValueError, match=r"results\.rows\[3\]\.gain should be number or null, not 'much'"):
        report.render(wrong)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_write_replaces_at_once_or_not_at_all(document, text, tmp_path):
    path = tmp_path / "deep" / "report.html"
    report.write(document, path)
    assert path.read_text("utf-8") == text
    with pytest.raises(ValueError):
        report.write({"schema": 1}, path)
    assert path.read_text("utf-8") == text
    assert os.listdir(path.parent) == ["report.html"]


def test_a_failed_write_leaves_nothing(document, tmp_path, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        report.write(document, tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


# ---- the snippet -----------------------------------------------------------------------------------------------------


def test_the_snippet_is_short_and_names_the_public_interface(document):
    snippet = report.snippet(document)
    ast.parse(snippet)
    assert len(snippet.splitlines()) <= 15
    assert max(map(len, snippet.splitlines())) <= 100
    assert "recipe = wp.Recipe(wp.ELR(strength=3.0, beta=0.7))\n" in snippet
    assert "wp.Classify(classes=10)" in snippet


def test_the_snippet_trains_a_model(document, capsys):
    import torch

    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    own = copy.deepcopy(document) | {"headline": "ELR wins\nimport os"}
    own["rows"][0]["recipe"] = "Recipe(ELR(rows=12, classes=3), seed=3)"
    own["data"]["classes"], own["plan"]["epochs"] = 3, 2
    model = torch.nn.Linear(4, 3)
    before = model.weight.clone()
    batches = [(x[i], y[i], torch.tensor(i)) for i in (range(6), range(6, 12))]
    space = {"model": model, "loader": batches}
    exec(report.snippet(own), space)
    assert not torch.equal(model.weight, before)
    assert not space["recipe"].attached
    assert len(capsys.readouterr().out.splitlines()) == 2, "a line each epoch"
    assert "os" not in space


def test_long_recipes_take_a_line_for_each_method(document):
    own = copy.deepcopy(document)
    methods = [f"MixUp(alpha=0.{i}, strength=Linear(start=0.0, stop=float('inf')))" for i in range(1, 4)]
    own["rows"][0]["recipe"] = f"Recipe({', '.join(methods)}, seed=3)"
    lines = report.snippet(own).splitlines()
    assert "    wp.MixUp(alpha=0.2, strength=wp.Linear(start=0.0, stop=float('inf')))," in lines
    assert "    seed=3," in lines


def test_no_snippet_without_a_winner_or_a_recipe(document):
    with pytest.raises(ValueError, match="no winner"):
        report.snippet(document | {"winner": None})
    own = copy.deepcopy(document)
    own["rows"][0]["recipe"] = "<Recipe at 0x7f>"
    with pytest.raises(ValueError, match="is not the repr of a recipe"):
        report.snippet(own)


# ---- in a real browser -----------------------------------------------------------------------------------------------

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--v=0", "--run-all-compositor-stages-before-draw", "--disable-checker-imaging",
)  # fmt: skip
DARK = "--blink-settings=preferredColorScheme=0"

browser = pytest.mark.browser


class Chromium:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if found is None and os.environ.get("CI"):  # there it must never be left out
            pytest.fail("chromium is not installed, and the report must be tested in a browser: .ci/run installs it")
        if found is None:
            pytest.skip("chromium is not installed: apt-get install chromium to test the report in a browser")
        self.program = found
        self.count = 0

    def show(self, text: str, *flags: str) -> tuple[str, list[str]]:
        """What `--dump-dom` prints for a page, and the messages on its console."""
        self.count += 1
        page, profile = self.folder / f"{self.count}.html", self.folder / f"profile-{self.count}"
        page.write_bytes(text.encode("utf-8", errors="replace"))
        command = [self.program, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        shutil.rmtree(profile, ignore_errors=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def picture(self, text: str, width: int, height: int, *flags: str) -> tuple[np.ndarray, list[str]]:
        """A screenshot as an array (height, width, 3), and the messages on the console.

        Taken until two in a row are equal: now and then one is, on a busy machine, of a page half painted.
        """
        before = None
        for _ in range(6):
            shot = self.folder / f"shot-{self.count + 1}.png"
            _, console = self.show(text, f"--window-size={width},{height}", f"--screenshot={shot}", *flags)
            with Image.open(shot) as image:
                found = np.asarray(image.convert("RGB")).astype(np.int16)
            if before is not None and np.array_equal(found, before):
                return found, console
            before = found
        raise AssertionError("no two screenshots of this page were equal")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    return Chromium(tmp_path_factory.mktemp("chromium"))


def painted(picture: np.ndarray, color: str) -> int:
    """Number of pixels of (nearly) this colour."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(picture - rgb).max(axis=2) <= 3).sum())


def without_figures(text: str) -> str:
    """The same page with an empty place where each figure stands."""
    return text.replace("</style>", "figure svg[role=img] { visibility: hidden }</style>", 1)


@browser
def test_errors_of_a_page_are_noticed(chromium, text):
    _, console = chromium.show("<script>throw new Error('broken on purpose')</script>", "--dump-dom")
    assert any("broken on purpose" in line for line in console)
    altered = text.replace('"use strict";', '"use strict"; ', 1)  # no longer the script of the policy
    _, console = chromium.show(altered, "--dump-dom")
    assert any("Content Security Policy" in line for line in console)


TONES = ("better", "worse", "reference", "extra")  # marks and bars, the dashed line, a learning curve


@browser
@pytest.mark.parametrize(("theme", "flags"), [(0, ()), (1, (DARK,))], ids=["light", "dark"])
def test_figures_are_painted_without_console_messages(chromium, text, theme, flags):
    palette = colors(text)[theme]
    picture, console = chromium.picture(text, 1280, 4200, *flags)
    assert console == []
    assert painted(picture, palette["paper"]) > 0.5 * picture.shape[0] * picture.shape[1]
    bare, _ = chromium.picture(without_figures(text), 1280, 4200, *flags)
    for tone in TONES:
        assert painted(picture, palette[tone]) > painted(bare, palette[tone]) + 100, tone


def framed(text: str, width: int, script: str = "", sandbox: str = "") -> str:
    """A page that shows another one at `width` pixels; the script sees the inner document as `inner`."""
    watch = "document.querySelector('iframe').onload = (event) => { const inner = event.target.contentDocument; %s }"
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><iframe {sandbox} srcdoc="{html.escape(text)}" '
        f'style="border:0;width:{width}px;height:4200px"></iframe><script>{watch % script}</script>'
    )


@browser
@pytest.mark.parametrize(("width", "shown"), [(320, "narrow"), (1280, "wide")])
def test_nothing_sticks_out_and_the_fitting_figures_are_shown(chromium, text, width, shown):
    script = """
      const figures = [...inner.querySelectorAll("figure svg[role=img]")];
      const seen = figures.filter((figure) => figure.getBoundingClientRect().width > 0);
      const drawn = seen.every((figure) => figure.querySelectorAll("path").length > 3);
      const kinds = seen.map((figure) => figure.classList[0]);
      document.body.dataset.found = JSON.stringify([inner.documentElement.scrollWidth, kinds, drawn]);
    """
    dom, console = chromium.show(framed(text, width, script), "--dump-dom", "--window-size=1400,900")
    assert console == []
    (found,) = re.findall(r'data-found="([^"]*)"', dom)
    assert html.unescape(found) == f'[{width},["{shown}","{shown}","{shown}"],true]'


@browser
def test_a_phone_shows_the_figures(chromium, text):
    palette = colors(text)[0]
    picture, _ = chromium.picture(framed(text, 320), 500, 4200)
    bare, _ = chromium.picture(framed(without_figures(text), 320), 500, 4200)
    for tone in TONES:
        assert painted(picture[:, :320], palette[tone]) > painted(bare, palette[tone]) + 20, tone
    assert (picture[:, 320:] == 255).all()


@browser
def test_the_columns_sort(chromium, document, text):
    """Clicking heads by script, in a copy without the policy that forbids this very script."""
    click = """<script>
      const order = () => [...document.querySelectorAll(".ranked tbody th")].map((h) => h.textContent);
      const head = (name) => [...document.querySelectorAll(".ranked thead button")].find((b) => b.textContent === name);
      const seen = [order()];
      for (const name of ["time", "time", "technique"]) { head(name).click(); seen.push(order()); }
      document.body.dataset.sort = head("technique").closest("th").getAttribute("aria-sort");
      document.body.dataset.seen = JSON.stringify(seen);
    </script></body>"""
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", click)
    dom, console = chromium.show(loose, "--dump-dom")
    assert console == []
    (found,) = re.findall(r'data-seen="([^"]*)"', dom)
    ranked, slowest, fastest, names = ast.literal_eval(html.unescape(found))
    time = {row["label"]: row["cost"] and row["cost"]["time"] for row in document["rows"]}
    times = [time[name] for name in slowest]
    assert slowest != ranked
    assert times[-2:] == [None, None]
    assert times[:-2] == sorted(times[:-2], reverse=True)
    assert [time[name] for name in fastest][-2:] == [None, None]
    assert [time[name] for name in fastest][:-2] == sorted(times[:-2])
    assert [name.lower() for name in names] == sorted(name.lower() for name in names)
    assert 'data-sort="ascending"' in dom


@browser
def test_without_script_everything_is_shown_and_no_button_promises_anything(chromium, text):
    """A sandboxed frame may not run scripts; the page around it looks inside."""
    script = """
      const buttons = [...inner.querySelectorAll("button")];
      document.body.dataset.found = JSON.stringify([buttons.length, buttons.filter((b) => b.disabled).length]);
    """
    quiet = framed(text, 1280, script, 'sandbox="allow-same-origin"')
    dom, console = chromium.show(quiet, "--dump-dom")
    assert all("Blocked script execution" in line for line in console)
    assert len(console) == 1
    (found,) = re.findall(r'data-found="([^"]*)"', dom)
    buttons, disabled = ast.literal_eval(found)
    assert buttons == disabled > 10
    shown, _ = chromium.picture(quiet, 1280, 4200)
    for tone in TONES:
        assert painted(shown, colors(text)[0][tone]) > 100, tone
