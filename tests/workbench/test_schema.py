"""The schema of results.json: it accepts the sample, refuses what is wrong, and the documentation follows it."""

import copy
import json
import random
from pathlib import Path

import jsonschema
import pytest
from sample_results import sample

from wellposed.workbench.report.words import VERDICTS as DRAWN
from wellposed.workbench.schema import RESULTS_SCHEMA, VERDICTS, check_results, describe

DOCS = Path(__file__).parents[2] / "docs" / "results-schema.md"
VALIDATOR = jsonschema.Draft202012Validator(RESULTS_SCHEMA)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(RESULTS_SCHEMA)


@pytest.mark.parametrize("how", [{}, {"techniques": 3, "seeds": 5}, {"seeds": 20, "techniques": 50}])
def test_the_sample_follows_it(how):
    document = json.loads(json.dumps(sample(**how), allow_nan=False))
    VALIDATOR.validate(document)
    check_results(document)


WRONG = [
    ("a missing field", lambda d: d.pop("population"), "lacks the field 'population'"),
    ("a missing field of a row", lambda d: d["rows"][2].pop("verdict"), r"rows\[2\] lacks the field 'verdict'"),
    ("an unknown verdict", lambda d: d["rows"][0].update(verdict="great"), r"verdict should be one of 'better'"),
    ("text for a number", lambda d: d["rows"][0].update(gain="1"), r"rows\[0\].gain should be number or null, not '1'"),
    ("a truth value for a number", lambda d: d["rows"][0].update(wins=True), r"wins should be integer, not True"),
    ("half an interval", lambda d: d["rows"][0].update(interval=[1.0]), r"interval should have 2 items, not 1"),
    ("an impossible p", lambda d: d["rows"][0].update(p=1.5), r"rows\[0\].p is 1.5, outside its range"),
    ("a negative count", lambda d: d["plan"].update(runs=-1), r"plan.runs is -1, outside its range"),
    ("another task", lambda d: d["data"].update(task="clustering"), "data.task should be one of"),
    ("a list for a mapping", lambda d: d.update(environment=[]), r"environment should be object, not \[\]"),
    ("a wrong side metric", lambda d: d["baseline"]["metrics"].update(nll="low"), "nll should be number or null"),
    ("null where a value is needed", lambda d: d.update(rows=None), "rows should be array, not None"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_documents_are_refused_with_the_place(change, message):
    document = sample()
    change(document)
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ValueError, match=message):
        check_results(document)


def test_numbers_must_be_finite():
    """JSON has no NaN, so JSON Schema cannot forbid it; the check does."""
    document = sample()
    document["rows"][0]["gain"] = float("nan")
    with pytest.raises(ValueError, match=r"rows\[0\].gain should be a finite number or null, not nan"):
        check_results(document)


def test_another_version_is_named():
    with pytest.raises(ValueError, match="has schema 2; this wellposed reads 1"):
        check_results(sample() | {"schema": 2})


def test_unknown_fields_are_allowed():
    document = sample()
    document["rows"][0]["mood"] = document["mood"] = "good"
    VALIDATOR.validate(document)
    check_results(document)


def places(value, path=()):
    """Every path in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def test_the_check_agrees_with_jsonschema_on_broken_documents():
    """The small checker reads the keywords it needs itself; an independent library must judge alike."""
    whole = sample(techniques=1, seeds=5, epochs=3)
    chance = random.Random(0)
    paths = sorted((path for path in places(whole) if path), key=str)
    verdicts = []
    for _ in range(250):
        document = copy.deepcopy(whole)
        *above, key = chance.choice(paths)
        holder = document
        for step in above:
            holder = holder[step]
        holder[key] = chance.choice([None, True, "x", "", -1, 0, 2.0, 2.5, [], {}, [1, 2], [None], {"gain": 1}])
        try:
            check_results(document)
            accepted = True
        except ValueError:
            accepted = False
        assert accepted == VALIDATOR.is_valid(document), (above, key, holder[key])
        verdicts.append(accepted)
    assert 30 < sum(verdicts) < 220


def test_every_field_has_a_meaning():
    rows = [line.split("|")[1:-1] for line in describe().splitlines()[2:]]
    assert len(rows) > 100
    unexplained = [field.strip() for field, _, meaning in rows if not meaning.strip() and ".*" not in field]
    assert unexplained == []


def test_the_documentation_lists_exactly_these_fields():
    """Mend with: python -m wellposed.workbench.schema, into the table of docs/results-schema.md."""
    assert DOCS.read_text("utf-8").partition("| field |")[1:] == ("| field |", describe().partition("| field |")[2])


def test_every_verdict_can_be_drawn():
    assert set(DRAWN) == set(VERDICTS)
