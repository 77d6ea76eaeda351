"""The command line as a user meets it: exit codes, stdout for data, stderr for talk, resume, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wellposed
from wellposed.cli import main
from wellposed.workbench.schema import check_results

SMALL = ["compare", "--methods", "elr,labelsmoothing,cutmix", "--epochs", "3", "--train-size", "120", "--no-tune"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def shell(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wellposed.cli", *arguments], cwd=cwd, env={**os.environ, **env}, text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip


def numbers(document: dict[str, Any]) -> Any:
    """What must be equal when the same comparison is made again."""
    rows = [{k: r[k] for k in ("id", "value", "gains", "verdict", "p", "selected")} for r in document["rows"]]
    return rows, document["baseline"]["value"], document["baseline"]["curves"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A small comparison, run to the end in two processes."""
    folder = tmp_path_factory.mktemp("compare")
    done = shell(*SMALL, "--seeds", "5", "--jobs", "2", "--out", "here", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_compare_writes_what_it_promises(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, document = finished
    check_results(document)
    out = folder / "here"
    assert json.loads((out / "results.json").read_text()) == document
    page = (out / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert {r["id"] for r in document["rows"]} == {"elr", "labelsmoothing", "cutmix", "early-stopping"}
    by = {r["id"]: r for r in document["rows"]}
    assert by["cutmix"]["verdict"] == "not applicable"
    assert "images" in by["cutmix"]["why"]
    assert by["elr"]["seeds"] == 5
    assert len(by["elr"]["gains"]) == 5
    assert by["elr"]["cost"]["passes"] == 1
    assert len(list((out / "runs").glob("*.json"))) == 5 * 3 + 1  # and what the plan rests on
    assert not list(out.rglob("*.tmp"))
    if document["winner"]:
        assert wellposed.load_recipe((out / "recipe.toml").read_text())
        compile((out / "snippet.py").read_text(), "snippet.py", "exec")


def test_the_same_command_takes_up_finished_runs(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, document = finished
    runs = sorted((folder / "here" / "runs").glob("*.json"))
    for path in runs[::2]:
        path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in runs[1::2]}
    again = shell(*SMALL, "--seeds", "5", "--jobs", "1", "--out", "here", "--json", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert numbers(json.loads(again.stdout)) == numbers(document), "other workers, other order, same numbers"
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a finished run was made again"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_resumed(how: signal.Signals, tmp_path: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    command = [*SMALL, "--seeds", "5", "--jobs", "2", "--out", "here", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wellposed.cli", *command], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    runs, patience = tmp_path / "here" / "runs", time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it may just have finished
        assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
        assert out == "", "half a document on stdout"
    if how == signal.SIGINT and process.returncode == 130:
        assert "interrupted" in err
        assert "Traceback" not in err
    had = {p.name: p.read_bytes() for p in runs.glob("*.json")}
    assert len(had) >= 2
    resumed = shell(*command, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert numbers(json.loads(resumed.stdout)) == numbers(finished[1])
    assert all((runs / name).read_bytes() == content for name, content in had.items()), "a finished run was lost"


def test_table_on_stdout_talk_on_stderr(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    done = shell(*SMALL, "--seeds", "5", "--out", "here", cwd=folder, COLUMNS="80", NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "ELR" in done.stdout
    assert "baseline" in done.stdout
    assert "\x1b[" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "plan" in done.stderr


def test_table_of_somebodys_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["age;town;income;bought"]
    for _ in range(240):
        age, town = rng.integers(18, 80), rng.choice(["Ulm", "Köln", ""])
        income = "" if rng.random() < 0.1 else f"{rng.normal(30, 9):.1f}"
        lines.append(f"{age};{town};{income};{'yes' if age + rng.normal(0, 9) > 45 else 'no'}")
    (tmp_path / "mine.csv").write_text("\n".join(lines), "utf-8")
    done = shell(
        "compare", "--data", "mine.csv", "--target", "bought", "--methods", "mixup,l2", "--seeds", "3", "--epochs", "2",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_results(document)
    assert document["data"]["classes"] == 2
    assert document["winner"] is None
    assert "below 5 seeds" in " ".join(document["warnings"])
    assert (tmp_path / ".wellposed").is_dir(), "results lie next to the project"


def test_strict_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(
        capsys, "compare", "--data", "wine", "--methods", "labelsmoothing", "--seeds", "2", "--epochs", "1",
        "--jobs", "1", "--out", str(tmp_path), "--strict",
    )  # fmt: skip
    assert code == 4, err


BAD = [
    (["--data", "nowhere.csv", "--target", "y"], "nowhere.csv"),
    (["--data", "digit"], "did you mean digits"),
    (["--data", "one.csv", "--target", "z"], "z"),
    (["--data", "one.csv"], "--target"),
    (["--data", "one.csv", "--target", "same"], "one"),
    (["--data", "nan.csv", "--target", "y"], "no value"),
    (["--data", "empty"], "empty"),
    (["--data", "constant.csv", "--target", "y"], "constant"),
    (["--data", "nosuch:function"], "nosuch"),
    (["--methods", "elrr"], "did you mean elr"),
    (["--methods", "sam:rho=-1"], "rho"),
    (["--methods", "sam:radius=1"], "radius"),
    (["--methods", ","], "no method"),
    (["--model", "resnet"], "resnet"),
    (["--model", "nosuch:model"], "nosuch"),
    (["--seeds", "-3"], "--seeds"),
    (["--budget", "soon"], "--budget"),
    (["--metric", "bleu"], "bleu"),
    (["--jobs", "0"], "--jobs"),
    (["--epochs", "0"], "--epochs"),
    (["--label-noise", "1.5"], "label noise"),
    (["--train-size", "-5"], "train-size"),
    (["--corrupt", "rain"], "rain"),
    (["--worth", "-1"], "worth"),
    (["--nonsense"], "nonsense"),
    (["--out", "one.csv"], "one.csv"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i % 7},{i % 2},1\n" for i in range(60))
    (tmp_path / "one.csv").write_text("x,y,same\n" + rows)
    (tmp_path / "nan.csv").write_text("x,y\n" + "".join(f"{i},{'' if i == 7 else i % 2}\n" for i in range(60)))
    (tmp_path / "constant.csv").write_text("x,y\n" + "".join(f"1,{i % 2}\n" for i in range(60)))
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in tmp_path.rglob("*"))
    code, out, err = call(capsys, "compare", "--methods", "labelsmoothing", *arguments)
    assert code == 2, err
    assert out == ""
    error = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1, err
    assert says in error[0]
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == before, "something was half-written"


def test_methods_lists_every_technique(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "methods", "--json")
    assert code == 0
    rows = {r["id"]: r for r in json.loads(out)}
    asked = """
        elr ps-kd squentropy poly-loss comp-sum-losses decoupled-mixup masksub vat sam amp-flatness
        finite-difference-gradient-reg jacobian-regularization norm-loss weight-compander gor
        adamw-decoupled-weight-decay prosparse hypersparse-art dispersive-loss upgrad gradient-clipping-omega
        dropout labelsmoothing confidencepenalty gaussiannoise ema earlystopping
    """.split()  # noqa: SIM905
    assert set(asked) <= set(rows)
    assert rows["sam"] | {"passes": 2.0, "family": "smoothness", "slots": ["gradient"]} == rows["sam"]
    assert rows["sam"]["defaults"]["rho"] == 0.05
    assert all(r["family"] and r["slots"] and r["passes"] >= 1 and r["summary"] for r in rows.values())


def test_methods_and_show_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for name in ("sam", "SAM", "labelsmoothing"):
        code, out, _ = call(capsys, "show", name)
        assert code == 0
        assert "Reference" in out
    assert call(capsys, "show", "samm")[0] == 2
    assert call(capsys, "show", "a2mim")[0] == 0
    assert call(capsys, "methods", "--family", "nothing")[0] == 2


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version")[1].strip() == wellposed.__version__
    assert "--label-noise" in call(capsys, "compare", "--help")[1]
