"""The table in the terminal."""

import io

import pytest
from rich.console import Console
from sample_results import HOSTILE, sample

from wellposed.workbench.table import print_table


def printed(document, width=80, **how) -> str:
    all, out = how.pop("all", False), how.pop("out", None)
    stream = io.StringIO()
    print_table(document, Console(file=stream, width=width, **how), all=all, out=out)
    return stream.getvalue()


def lines_of_table(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("verdict"))
    return lines[start : lines.index("", start)]


def heads(text: str) -> list[str]:
    return lines_of_table(text)[0].replace("95 % interval", "interval").replace("with noise", "with-noise").split()


def test_80_columns_show_what_matters_most():
    text = printed(sample(), 80)
    assert heads(text) == ["verdict", "technique", "gain", "interval", "wins", "last", "time"]
    assert max(map(len, lines_of_table(text))) <= 80


def test_120_columns_show_everything():
    text = printed(sample(), 120)
    assert heads(text) == ["verdict", "technique", "gain", "interval", "wins", "last", "selected", "NLL", "ECE",
                           "with-noise", "time", "memory"]  # fmt: skip
    assert max(map(len, lines_of_table(text))) <= 120


@pytest.mark.parametrize("width", [50, 60, 70, 80, 100, 120, 200])
def test_no_line_of_the_table_is_wider_than_the_terminal(width):
    table = lines_of_table(printed(sample(), width))
    assert max(map(len, table)) <= width
    assert len(table) == 1 + 25 + 1 + 1 + 1  # head, techniques, early stopping, the failed one, baseline


def test_rows_are_ranked_and_the_two_references_are_there():
    table = lines_of_table(printed(sample(), 80))
    assert table[1].split()[:3] == ["better", "ELR", "+25.2*"]
    assert table[2].split()[:2] == ["tied", "VAT"]
    assert table[-1].startswith("baseline   none")
    assert "66.7 (sd 4.8)" in table[-1]
    assert next(line for line in table if "early stopping" in line).startswith("reference")
    gains = [float(line[33:].split()[0].rstrip("*")) for line in table[1:-2]]
    assert gains == sorted(gains, reverse=True)


def test_the_mark_stands_for_the_joint_test():
    document = sample()
    document["rows"][0]["p"] = 0.051
    table = lines_of_table(printed(document))
    assert "+25.2 " in table[1]
    assert "+22.0*" in table[2]
    assert "ConfidencePenalty" in table[-3]
    assert "*" not in table[-3]


def test_what_has_no_result_is_named_with_its_reason():
    text = printed(sample(), 80)
    assert f"failed: {HOSTILE}: the loss became NaN in step 41" in text
    assert "not applicable: UPGrad: needs two losses" in text
    assert "dropped in the race: NestedDropout (--all shows them)" in text
    assert "warning: 10 rows of the test part" in text


def test_all_shows_what_was_dropped():
    text = printed(sample(), 80, all=True)
    assert any(line.startswith("dropped    NestedDropout") for line in lines_of_table(text))
    assert "--all" not in text


def test_a_technique_known_only_to_the_plan_is_named():
    document = sample()
    document["plan"]["not_applicable"].append({"id": "rdrop", "why": "needs logits"})
    assert "not applicable: rdrop: needs logits" in printed(document)


def test_next_steps_name_the_files_that_exist():
    text = printed(sample(), out="runs/a")
    assert "report  runs/a/report.html" in text
    assert "recipe  runs/a/recipe.toml" in text
    assert "recipe" not in printed(sample() | {"winner": None}, out="runs/a").splitlines()[-1]
    assert "report" not in printed(sample())


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in printed(sample(), force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(sample())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in printed(sample(), force_terminal=True, color_system="standard")


def test_names_cannot_control_the_terminal_or_the_markup():
    document = sample()
    document["rows"][0]["label"] = "[red]x[/red]\x1b[2J\r\n"
    document["warnings"] = ["[link=http://x]\x1b]0;title\x07"]
    text = printed(document, force_terminal=True, no_color=True)
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert "[link=http://x]" in text


def test_plain_ascii_suffices():
    printed(sample()).encode("ascii")


def test_a_metric_without_points_gets_its_digits():
    document = sample()
    document["metric"] = {"name": "rmse", "direction": "min", "unit": ""}
    for row in document["rows"]:
        if row["gain"] is not None:
            row["gain"], row["interval"] = row["gain"] / 1000, [end / 1000 for end in row["interval"]]
    assert f" {document['rows'][0]['gain']:+.5f}* " in printed(document)
