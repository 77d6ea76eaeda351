"""Finished runs are never lost, damaged files never read, and errors of the disk are one sentence."""

import errno
import json
import os
from pathlib import Path

import pytest

from wellposed.workbench.errors import BadInput
from wellposed.workbench.store import STALE, Run, Store, StoreError, code_hash

RUN = Run("c0de", {"row": "sam", "rho": 0.5, "grid": (1, 2)}, "da7a", 3, {"torch": "2.13"})
RESULT = {"last": 91.25, "curve": [1.0, None, 0.1], "selected": {"epoch": 4}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def files(store: Store) -> list[str]:
    return sorted(path.suffix for path in store.folder.iterdir())


def test_a_result_comes_back_in_another_process_equal(store: Store, tmp_path: Path) -> None:
    assert store.get(RUN) is None
    assert store.put(RUN, RESULT, {"seconds": 1.5}) == RESULT
    again = Store(tmp_path)
    assert again.get(RUN) == RESULT
    assert again.timings(RUN) == {"seconds": 1.5}
    assert files(store) == [".json"]


@pytest.mark.parametrize("change", [{"code": "x"}, {"config": {}}, {"data": "x"}, {"seed": 4}, {"versions": {}}])
def test_the_key_depends_on_everything(change: dict) -> None:
    parts = {"code": "c0de", "config": RUN.config, "data": "da7a", "seed": 3, "versions": RUN.versions}
    assert Run(**parts).key == RUN.key
    assert Run(**{**parts, **change}).key != RUN.key


def test_the_key_ignores_the_order_of_keys() -> None:
    assert Run("a", {"x": 1, "y": 2}, "b", 0, {}).key == Run("a", {"y": 2, "x": 1}, "b", 0, {}).key


def test_keys_that_are_not_strings_survive(store: Store) -> None:
    run = Run("a", {10: "x", 9: "y"}, "b", 0, {})  # type: ignore[dict-item]
    store.put(run, {"by_class": {10: 1.0, 9: 2.0}})
    assert store.get(run) == {"by_class": {"10": 1.0, "9": 2.0}}


def test_first_finisher_wins_and_a_different_second_is_reported(store: Store) -> None:
    store.put(RUN, RESULT, {"seconds": 1.0})
    assert store.put(RUN, RESULT, {"seconds": 9.0}) == RESULT
    assert store.disagreements == []
    assert store.put(RUN, {"last": 0.0}) == RESULT
    assert store.disagreements == [RUN.key]
    assert store.get(RUN) == RESULT
    assert store.timings(RUN) == {"seconds": 1.0}


def test_every_truncation_is_quarantined_and_the_run_can_be_made_again(store: Store) -> None:
    store.put(RUN, RESULT)
    path = store.path(RUN)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert store.get(RUN) is None
        assert not path.exists()
    assert len(store.quarantined) == len(whole)
    assert path.with_suffix(".bad").exists()
    assert store.put(RUN, RESULT) == RESULT


def test_every_flipped_bit_is_noticed(store: Store) -> None:
    store.put(RUN, RESULT)
    path = store.path(RUN)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert store.get(RUN) in (None, RESULT)


HOSTILE = {
    "empty": b"",
    "not utf-8": b"\xff\xfe{}",
    "deep": b"[" * 200_000,
    "huge integer": b'{"digest": ' + b"9" * 10_000 + b"}",
    "infinite": b'{"digest": "", "result": 1e999}',
    "nan": b'{"digest": "", "result": NaN}',
    "list": b"[]",
    "null": b"null",
    "text": b'"digest"',
    "other fields": b'{"digest": 3}',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_quarantined(store: Store, content: bytes) -> None:
    store.path(RUN).write_bytes(content)
    assert store.get(RUN) is None
    assert store.quarantined[0].startswith(f"{RUN.key}.json is damaged, set aside as {RUN.key}.bad")
    assert store.put(RUN, RESULT) == RESULT


def test_another_runs_file_under_this_name_is_not_believed(store: Store) -> None:
    other = Run("c0de", {}, "da7a", 4, {})
    store.put(other, RESULT)
    os.rename(store.path(other), store.path(RUN))
    assert store.get(RUN) is None


def test_a_folder_a_pipe_or_a_link_in_place_of_a_file(store: Store) -> None:
    path = store.path(RUN)
    path.mkdir()
    assert store.get(RUN) is None
    path.with_suffix(".bad").rmdir()
    os.mkfifo(path)
    assert store.get(RUN) is None
    store.put(RUN, RESULT)
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert store.get(RUN) is None
    assert len(store.quarantined) == 3


def test_what_cannot_be_set_aside_is_reported_and_does_not_raise(store: Store) -> None:
    store.path(RUN).mkdir()
    store.path(RUN).with_suffix(".bad").write_text("in the way")
    assert store.get(RUN) is None
    assert "could not be set aside" in store.quarantined[0]
    with pytest.raises(StoreError, match="cannot be written"):
        store.put(RUN, RESULT)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_errors_of_the_disk_are_one_sentence_and_leave_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fail(*args: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    kept = Run("c0de", {}, "da7a", 1, {})
    store.put(kept, RESULT)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if call == "open" else f"os.{call}", fail)
        with pytest.raises(StoreError, match=os.strerror(code)) as caught:
            store.put(RUN, RESULT)
    assert isinstance(caught.value, BadInput)
    assert "\n" not in str(caught.value)
    assert files(store) == [".json"]
    assert store.get(kept) == RESULT


def test_ctrl_c_while_writing_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.put(RUN, RESULT)
    assert files(store) == []


def test_a_file_that_may_not_be_read_is_an_error_and_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(RUN, RESULT)

    def fail(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(StoreError, match="cannot be read"):
            store.get(RUN)
    assert store.get(RUN) == RESULT


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": {1, 2}}])
def test_a_result_that_is_not_json_is_refused(store: Store, bad: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.put(RUN, bad)
    assert files(store) == []


def test_stale_temporary_files_are_removed_and_fresh_ones_left(store: Store, tmp_path: Path) -> None:
    old, new = store.folder / "a.tmp", store.folder / "b.tmp"
    for path in (old, new):
        path.write_text(json.dumps({}))
    past = old.stat().st_mtime - 2 * STALE
    os.utime(old, (past, past))
    Store(tmp_path)
    assert files(store) == [".tmp"]
    assert new.exists()


def test_code_hash_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first = code_hash(tmp_path)
    assert code_hash(tmp_path) == first
    (tmp_path / "notes.txt").write_text("not code")
    assert code_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2")
    second = code_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_hash(tmp_path)}) == 3
