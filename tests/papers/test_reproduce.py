"""Running claims again: the mutated run, what is written, what is compared, what is resumed, and what the user is told.

Workers have a test of their own; here claims run in this process.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wellposed import cli
from wellposed.core.registry import parts_of
from wellposed.papers import evidence, reproduce
from wellposed.papers.claim import Claim, ClaimError
from wellposed.papers.mutation import Mutation, MutationError, fixed, negated
from wellposed.papers.progress import Progress
from wellposed.papers.reproduce import Watch, run_claim
from wellposed.papers.status import status_of
from wellposed.smoothness import sam as technique
from wellposed.workbench.errors import BadInput
from wellposed.workbench.outcome import Failure

Run = Callable[[int], Mapping[str, Mapping[str, Any]]]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No worker processes, and a folder of one's own."""

    def work_through(
        work: Any, specs: Any, jobs: int, timeout: float, *, may_start: Any, on_start: Any
    ) -> Iterator[tuple[int, Any]]:
        for i, spec in enumerate(specs):
            if not may_start(i):
                return
            on_start(i)
            try:
                yield i, work(spec)
            except Exception as error:
                yield i, Failure(f"{type(error).__name__}: {error}")

    monkeypatch.setattr(reproduce, "work_through", work_through)
    monkeypatch.chdir(tmp_path)
    Path("evidence").mkdir()
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")


def claim(run: Run, **changed: Any) -> Claim:
    fields: dict[str, Any] = {
        "paper": "sam", "margin": 1.0, "statement": "It helps.", "arena": "none", "quantity": "accuracy",
        "mutation": mutation(fixed(rho=0.0)),
    }  # fmt: skip
    return Claim(run=run, **(fields | changed))


def mutation(by: Any, name: str = "SAM") -> Mutation:
    return Mutation(words="radius 0", target=f"wellposed.smoothness.sam:{name}", by=by)


def noisy(effect: float) -> Run:
    """Both arms share most of their noise, as paired arms do; the effect goes through SAM's radius."""

    def run(seed: int) -> Mapping[str, Mapping[str, float]]:
        shared, one, two = np.random.default_rng(seed).normal(0, 1, 3)
        effect_now = effect * technique.SAM(rho=1.0).rho
        return {"with": {"accuracy": 5 * shared + one + effect_now}, "without": {"accuracy": 5 * shared + two}}

    return run


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a quick run in place of the claim of SAM."""

    def put(run: Run, **changed: Any) -> None:
        monkeypatch.setattr("wellposed.papers.claims.sam.CLAIM", claim(run, **changed))

    return put


# ---- the mutated run
def radius(seed: int) -> Mapping[str, Mapping[str, float]]:
    """A gain that is SAM's radius."""
    return {"with": {"accuracy": technique.SAM(rho=5.0).rho + seed % 2 / 10}, "without": {"accuracy": 0.0}}


def test_a_damaged_technique_loses_its_pass() -> None:
    found = run_claim(claim(radius, mutation=mutation(fixed(rho=0.0))))
    assert found["verdict"] == "PASS"
    assert found["mutation"] == {"words": "radius 0", "verdict": "FAIL", "estimate": 0.04}
    assert evidence.mutation_in_words(found) == "with radius 0: FAIL"


def test_a_claim_that_passes_all_the_same_is_an_error() -> None:
    with pytest.raises(ClaimError, match="PASS, but also with radius 0: this claim cannot fail"):
        run_claim(claim(radius, mutation=mutation(fixed(eta=0.0))))


def test_a_mutated_run_that_breaks_has_lost_its_pass() -> None:
    found = run_claim(claim(radius, mutation=mutation(fixed(rho=-1.0))))
    assert found["verdict"] == "PASS"
    assert found["mutation"]["verdict"] == "ERROR"
    assert "rho must be" in found["mutation"]["error"]


def test_a_mutation_of_nothing_is_an_error() -> None:
    for wrong in (mutation(negated, "Sam"), mutation(fixed(radius=0.0))):
        with pytest.raises(MutationError):
            run_claim(claim(radius, mutation=wrong))


def test_the_mutated_run_uses_the_seeds_that_gave_the_verdict() -> None:
    seen: list[int] = []

    def run(seed: int) -> Mapping[str, Mapping[str, float]]:
        seen.append(seed)
        return radius(seed)

    run_claim(claim(run, mutation=mutation(fixed(rho=0.0))), range(200, 220))
    assert seen == [*range(200, 205)] * 2


# ---- what is written and compared
def test_reproducing_writes_and_compares(stand_in: Callable[..., None]) -> None:
    stand_in(noisy(10.0))
    [first] = reproduce.reproduce(["sam"])
    assert (first.verdict, first.before, first.failed) == ("PASS", None, False)
    text = Path("evidence/sam.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    stand_in(noisy(-10.0))
    [second] = reproduce.reproduce(["sam"])
    assert (second.verdict, second.failed, second.contradicted) == ("FAIL", True, False)
    assert (reproduce.exit_code([first]), reproduce.exit_code([first, second])) == (0, 3)
    assert second.document()["before"] == "PASS"
    assert "was PASS" in str(second)
    [third] = reproduce.reproduce(["sam"])
    assert (third.verdict, third.failed, third.contradicted) == ("FAIL", False, True)  # shown, but nothing new
    assert reproduce.exit_code([third]) == 0


def test_a_new_null_is_no_failure_and_a_new_fail_is(stand_in: Callable[..., None]) -> None:
    stand_in(lambda seed: {"with": {"accuracy": 8.0 if seed % 2 else -6.0}, "without": {"accuracy": 0.0}})
    [null] = reproduce.reproduce(["sam"])
    assert (null.verdict, null.failed) == ("NULL", False)
    assert (reproduce.exit_code([null]), reproduce.exit_code([null], strict=True)) == (0, 4)
    Path("evidence/sam.json").unlink()
    stand_in(noisy(-10.0))
    [new] = reproduce.reproduce(["sam"])
    assert (new.verdict, new.failed) == ("FAIL", True)


def test_a_crash_is_the_result_of_its_claim(stand_in: Callable[..., None]) -> None:
    def crashing(seed: int) -> Any:
        raise KeyError(seed)

    stand_in(crashing)
    told: list[str] = []
    results = reproduce.reproduce(
        ["poly-loss", "sam"], watch=Watch(start=told.append, result=lambda r: told.append(r.verdict))
    )
    assert [r.verdict for r in results] == ["PASS", "ERROR"]
    assert reproduce.exit_code(results) == 1
    assert results[1].document()["evidence"] is None
    assert "KeyError" in str(results[1])
    assert told == ["poly-loss", "PASS", "sam", "ERROR"]
    assert [p.name for p in Path("evidence").iterdir()] == ["poly-loss.json"]


def test_other_seeds_leave_the_evidence_alone(stand_in: Callable[..., None]) -> None:
    stand_in(noisy(10.0))
    [result] = reproduce.reproduce(["sam"], seeds=6, first_seed=7)
    assert result.found is not None
    assert result.found["seeds"] == [7, 8, 9, 10, 11]
    assert list(Path("evidence").iterdir()) == []


# ---- order, time and interruption
def passing(spec: dict[str, Any]) -> dict[str, Any]:
    """A record without work."""
    return run_claim(claim(noisy(10.0), paper=spec["id"]), spec["seeds"])


def recorded(**seconds: float) -> None:
    for id, value in seconds.items():
        evidence.write(passing({"id": id, "seeds": range(100, 120)}) | {"seconds": value})


def test_the_longest_claims_start_first_and_within_a_time_the_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(elr=3.0, sam=30.0, vat=0.5)
    started: list[str] = []
    reproduce.reproduce(["elr", "sam", "vat"], work=passing, watch=Watch(start=started.append))
    assert started == ["sam", "elr", "vat"]
    recorded(elr=3.0, sam=30.0, vat=0.5)
    started.clear()
    results = reproduce.reproduce(["elr", "sam", "vat"], work=passing, within=20.0, watch=Watch(start=started.append))
    assert started == ["vat", "elr"]  # two runs each: 1 and 6 s; the 60 s of the third do not fit
    assert [r.id for r in results] == ["elr", "vat"]


def interrupted(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["id"] == "vat":
        raise KeyboardInterrupt
    return passing(spec)


def test_what_finished_before_an_interruption_is_not_run_again() -> None:
    ids = ["elr", "sam", "vat"]
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(ids, work=interrupted)
    evidence.write(passing({"id": "elr", "seeds": range(100, 120)}) | {"verdict": "FAIL"})  # what there is by now
    started: list[str] = []
    results = reproduce.reproduce(ids, work=passing, watch=Watch(start=started.append))
    assert started == ["vat"]
    assert [(r.id, r.before) for r in results] == [(id, None) for id in ids]  # compared with what there was then
    assert not Path(".wellposed/reproduce").exists()
    reproduce.reproduce(ids, work=passing, watch=Watch(start=started.append))
    assert sorted(started[1:]) == ids  # complete: the next time all run anew


def test_other_code_or_seeds_are_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    ids: list[str] = ["elr", "vat"]
    started: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(ids, work=interrupted)
    reproduce.reproduce(["elr"], first_seed=7, work=passing, watch=Watch(start=started.append))
    monkeypatch.setattr(evidence, "code_hash", lambda id: "0" * 16)
    reproduce.reproduce(["elr"], work=passing, watch=Watch(start=started.append))
    assert started == ["elr", "elr"]


def test_another_command_that_finishes_first_takes_nothing_away() -> None:
    """Two at once in one folder: the first to finish tidies up, and the other still writes down what it finished."""

    def meanwhile(id: str) -> None:
        reproduce.reproduce(["sam"], first_seed=7, work=passing)
        assert not reproduce.KEPT.exists()

    results = reproduce.reproduce(["elr"], first_seed=7, work=passing, watch=Watch(start=meanwhile))
    assert [r.verdict for r in results] == ["PASS"]


# ---- the command
def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["reproduce", *arguments])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reproduce, "run_one", interrupted)
    monkeypatch.setattr("sys.argv", ["wellposed", "reproduce", "elr", "vat"])
    code, out, err = run(capsys, "elr", "vat")
    assert (code, out.count("elr: PASS")) == (130, 1)
    assert "1 of 2 claims are done; go on with: wellposed reproduce elr vat" in " ".join(err.split())
    monkeypatch.setattr(reproduce, "run_one", passing)
    code, out, err = run(capsys, "elr", "vat")
    assert (code, out.count("PASS")) == (0, 2)
    assert "1 claims were done before the interruption" in err


def test_the_command_tells_results_contradictions_and_what_is_left(
    stand_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(noisy(-10.0))
    code, out, _ = run(capsys, "sam")
    assert code == 3
    assert "sam: FAIL" in out
    assert "contradicted" not in out
    code, out, _ = run(capsys, "sam", "poly-loss")
    assert code == 0
    assert out.splitlines()[-1] == "contradicted here as before: sam"
    recorded(sam=30.0)
    code, out, err = run(capsys, "sam", "poly-loss", "--within", "30s", "--json")
    assert [found["id"] for found in json.loads(out)] == ["poly-loss"]
    assert "left for lack of time: sam" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["samm"], "no claim for 'samm'"),
        (["sam", "--timeout", "soon"], "--timeout takes a positive time"),
        (["sam", "--within", "-1"], "--within takes a positive time"),
        (["sam", "--jobs", "0"], "at least one job"),
        ([], "name papers"),
    ],
)
def test_bad_input_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\xff", '{"schema": 1, "id": "sam"}', "[" * 100_000])
def test_damaged_evidence_ends_with_2(capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("evidence/sam.json").write_bytes(text.encode("latin1"))
    for arguments in (["sam"], ["--stale"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "sam.json" in err
        assert len(err.strip().splitlines()) == 1


def test_a_record_with_a_hole_is_refused() -> None:
    good = passing({"id": "sam", "seeds": range(100, 120)})
    evidence.write(good)
    assert evidence.read("sam") == good
    for changed in ({"schema": 99}, {"id": "elr"}, {"verdict": "MAYBE"}, {"interval": None}, {"seconds": "2"}):
        Path("evidence/sam.json").write_text(json.dumps(good | changed))
        with pytest.raises(BadInput, match="reproduce sam"):
            evidence.read("sam")


def test_progress_in_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("wellposed.papers.progress.EVERY", 0.0)
    with Progress(cli.talk(), {"elr": 20.0, "sam": 20.0}, jobs=2) as progress:
        progress.started("elr")
        progress.started("sam")
        progress.ended("elr")
        assert (progress.running, progress.finished) == (["sam"], ["elr"])
        assert progress.left() < 1.0  # half of it took no time at all
    err = capsys.readouterr().err
    assert "2 claims, about 20s" in err
    assert "1 of 2 claims, 0s left" in err


# ---- choosing and status
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reproduce.reproduce(["samm"]), "no claim for 'samm'"),
        (lambda: reproduce.reproduce(["sam"], seeds=3), "at least 5 paired seeds"),
        (lambda: reproduce.reproduce(["sam"], first_seed=-1), "seeds are 0, 1, 2"),
        (lambda: reproduce.reproduce(["sam"], folder=Path("nowhere")), "nowhere is no folder"),
        (lambda: reproduce.chosen(), "name papers"),
        (lambda: reproduce.chosen(["sam"], all=True), "name papers"),
        (lambda: reproduce.chosen(family="nowhere"), "no claim in family 'nowhere'"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


def test_choosing_claims() -> None:
    known = evidence.claimed()
    assert reproduce.chosen(all=True) == known
    assert reproduce.chosen(["sam", "elr", "sam"]) == ["elr", "sam"]
    assert "sam" in reproduce.chosen(family="smoothness")
    recorded(sam=1.0)
    assert reproduce.chosen(stale=True) == [id for id in known if id != "sam"]


def test_status_is_derived(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts_of("sam")
    assert status_of("sam") == "built"
    good = passing({"id": "sam", "seeds": range(100, 120)})
    for verdict, status in (("PASS", "verified"), ("NULL", "null"), ("FAIL", "contradicted")):
        evidence.write(good | {"verdict": verdict})
        assert status_of("sam") == status
    evidence.write(good | {"code": "0" * 16})
    assert status_of("sam") == "stale"
    monkeypatch.setattr("wellposed.papers.status.parts_of", lambda id: [])
    assert status_of("sam") == "planned"
    with pytest.raises(KeyError):
        status_of("samm")


def test_what_show_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "not run yet" in evidence.shown("elr")
    evidence.write(passing({"id": "elr", "seeds": range(100, 120)}))
    told = evidence.shown("elr")
    assert "It helps.\nnone\nPASS: " in told
    assert "stale" not in told
    assert evidence.shown("no-such-paper") == "no claim has been written for no-such-paper yet"
    monkeypatch.setattr(evidence, "code_hash", lambda id: "0" * 16)
    assert evidence.shown("elr").endswith("stale: the code has changed since")
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "nowhere")
    assert "kept in the repository (evidence/elr.json)" in evidence.shown("elr")
