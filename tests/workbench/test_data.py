"""Sources of data, what is detected in them, how they are split, and what is refused."""

import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from wellposed.workbench.data import Data, Split, corruptions, load, rows
from wellposed.workbench.errors import BadInput

EMBEDDED = ["digits", "breast_cancer", "wine", "diabetes", "text"]


def tensors(split: Split) -> list[torch.Tensor]:
    return [value for value in vars(split).values() if isinstance(value, torch.Tensor)]


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    return str(path)


def flowers(n: int = 60) -> pd.DataFrame:
    """A small mixed table whose columns each need another treatment."""
    stream = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "length": stream.normal(1000, 50, n).round(2),
            "colour": stream.choice(["rouge, vif", 'bleu "ciel"', "žlutá", "緑"], n),
            "picked": pd.date_range("2024-01-01", periods=n).strftime("%Y-%m-%d"),
            "code": [f"F{i:04d}" for i in range(n)],
            "garden": ["north"] * n,
            "kind": stream.choice(["daisy", "rose"], n),
        }
    )


# ---- embedded sets


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_split_into_finite_tensors(name: str) -> None:
    data = load(name)
    split = data.split(0)
    sizes = [len(split.x_train), len(split.x_val), len(split.x_test)]
    assert sum(sizes) == data.n
    assert sizes[0] == pytest.approx(0.6 * data.n, abs=2)
    for tensor in tensors(split):
        assert torch.isfinite(tensor).all()
    assert split.x_train.dtype == (torch.int64 if data.task == "language" else torch.float32)
    assert split.y_train.dtype == (torch.float32 if data.task == "regression" else torch.int64)
    assert data.name == name


def test_digits_are_flat_scans_in_the_unit_interval_with_the_arena_sizes() -> None:
    data = load()
    split = data.split(3, train_size=600, label_noise=0.4)
    assert (len(split.x_train), len(split.x_val), len(split.x_test)) == (600, 120, 597)
    assert data.image_shape == (1, 8, 8)
    assert split.x_train.shape[1:] == (64,)
    assert split.x_train.min() == 0
    assert split.x_train.max() == 1
    assert data.classes == tuple("0123456789")


def test_a_digits_split_is_fast() -> None:
    data = load()
    data.split(0, train_size=600, label_noise=0.4)
    times = []
    for seed in range(5):
        start = time.perf_counter()
        data.split(seed, train_size=600, label_noise=0.4)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.015


def test_text_windows_predict_the_next_character() -> None:
    data = load("text")
    assert torch.equal(torch.tensor(data.x[:, 1:]), torch.tensor(data.y[:, :-1]))
    assert data.classes is not None
    assert data.x.max() < len(data.classes)
    prose = "".join(data.classes[i] for i in data.x.ravel())
    assert 25_000 < len(prose) <= 32_000
    assert "::=" not in prose
    assert prose.count("\n") < 200  # paragraphs, not lines
    words = prose.lower().split()
    assert words.count("the") > 0.04 * len(words)  # English


def test_embedded_sets_are_read_once() -> None:
    assert load("wine") is load("wine")
    assert load("Breast-Cancer") is load("breast_cancer")


# ---- splits


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_split_is_a_pure_function_of_data_and_seed(name: str) -> None:
    data = load(name)
    state = torch.get_rng_state()
    first, again, other = data.split(1), data.split(1), data.split(2)
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert not torch.equal(first.x_test, other.x_test)
    assert torch.equal(state, torch.get_rng_state())


def test_the_parts_are_disjoint_and_complete() -> None:
    for train_size, held_out in [(None, 0), (None, 25), (50, 0), (50, 25)]:
        parts = rows.partition(
            200, np.random.default_rng(0), train_size=train_size, strata=None, held_out=held_out, test_rows=30
        )
        together = np.concatenate(parts)
        assert len(np.unique(together)) == len(together)
        if held_out:
            assert parts[2].tolist() == list(range(175, 200))
        if train_size is None:
            assert len(together) == 200
        else:
            assert [len(part) for part in parts] == [50, 20, held_out or 30]


def test_every_part_keeps_the_shares_of_the_classes() -> None:
    strata = np.repeat([0, 1, 2], [140, 50, 10])
    for seed in range(20):
        for part in rows.partition(
            200, np.random.default_rng(seed), train_size=None, strata=strata, held_out=0, test_rows=0
        ):
            expected = len(part) * np.array([0.7, 0.25, 0.05])
            assert np.abs(np.bincount(strata[part], minlength=3) - expected).max() <= 2


def test_stratified_orders_are_permutations_uniform_within_a_class() -> None:
    strata = np.array([0, 0, 0, 1])
    first = np.zeros(4)
    for seed in range(400):
        order = rows.stratified(strata, np.random.default_rng(seed))
        assert sorted(order) == [0, 1, 2, 3]
        first[next(row for row in order if row < 3)] += 1
    assert np.abs(first[:3] - 400 / 3).max() < 4 * (400 * (1 / 3) * (2 / 3)) ** 0.5


def test_larger_training_sets_contain_smaller_ones() -> None:
    data = load()
    small, large = data.split(0, train_size=100), data.split(0, train_size=300)
    assert torch.equal(small.x_train, large.x_train[:100])
    assert torch.equal(small.x_test, large.x_test)


def test_a_class_absent_from_training_keeps_its_place(tmp_path: Path) -> None:
    frame = flowers()
    frame.loc[0, "kind"] = "orchid"
    frame.to_csv(tmp_path / "f.csv", index=False)
    data = load(str(tmp_path / "f.csv"), "kind")
    assert data.classes == ("daisy", "orchid", "rose")
    assert any("'orchid' (1)" in warning for warning in data.warnings)
    absent = [split for seed in range(20) if 1 not in (split := data.split(seed, train_size=20)).y_train_clean]
    assert absent
    assert all(split.y_train.max() <= 2 for split in absent)


def test_big_data_keep_one_split_but_not_one_noise() -> None:
    x = np.random.default_rng(0).normal(size=(50_000, 2))
    data = Data("big", "classification", "tabular", "", x, (x[:, 0] > 0).astype(np.int64), ("no", "yes"))
    a, b = data.split(0, label_noise=0.3), data.split(1, label_noise=0.3)
    assert torch.equal(a.x_test, b.x_test)
    assert torch.equal(a.y_train_clean, b.y_train_clean)
    assert not torch.equal(a.y_train, b.y_train)


def test_label_noise_draws_other_classes_uniformly_and_spares_the_test() -> None:
    data = load()
    clean = data.split(0)
    wrong, kept = np.zeros(10), 0
    for seed in range(10):
        split = data.split(seed, label_noise=0.4)
        changed = split.y_train != split.y_train_clean
        kept += int((~changed).sum())
        steps = (split.y_train - split.y_train_clean)[changed] % 10
        wrong += np.bincount(steps.numpy(), minlength=10)
    total = kept + wrong.sum()
    assert wrong[0] == 0
    assert wrong.sum() / total == pytest.approx(0.4, abs=4 * (0.24 / total) ** 0.5)
    assert np.abs(wrong[1:] / wrong.sum() - 1 / 9).max() < 4 * (0.1 / wrong.sum()) ** 0.5
    noisy = data.split(0, label_noise=0.4)
    assert torch.equal(noisy.x_train, clean.x_train)  # noise moves no row
    assert torch.equal(noisy.y_test, clean.y_test)
    assert torch.equal(noisy.y_train_clean, clean.y_train)
    assert (noisy.y_val != clean.y_val).float().mean() == pytest.approx(0.4, abs=0.11)


def test_regression_is_in_standardised_units_with_noise_in_them() -> None:
    data = load("diabetes")
    split = data.split(0, label_noise=0.5)
    assert split.y_train_clean.mean() == pytest.approx(0, abs=1e-5)
    assert split.y_train_clean.std(correction=0) == pytest.approx(1, abs=1e-5)
    values = (split.y_test * split.y_scale + split.y_mean).numpy()
    assert np.isin(values.round().astype(int), data.y.astype(int)).all()
    assert (split.y_train - split.y_train_clean).std() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(split.y_test, data.split(0).y_test)


# ---- tables


def test_a_mixed_csv_is_understood(tmp_path: Path) -> None:
    frame = flowers()
    frame.loc[:4, "length"] = np.nan
    frame.loc[5:9, "colour"] = np.nan
    frame.to_csv(tmp_path / "fleurs été.csv", index=False)
    data = load(str(tmp_path / "fleurs été.csv"), "kind")
    assert (data.task, data.kind, data.classes) == ("classification", "tabular", ("daisy", "rose"))
    assert data.features == 3
    assert "60 rows, 3 features (2 numeric, 1 categorical; 10 rows with missing values)" in data.description
    assert [warning.split("'")[1] for warning in data.warnings] == ["code", "garden"]
    assert set(data.x["colour"]) == {"rouge, vif", 'bleu "ciel"', "žlutá", "緑", "(missing)"}
    assert data.x["picked"].diff().dropna().eq(1).all()
    split = data.split(0)
    # length, picked, missing length, and five categories
    assert split.x_train.shape == (36, 8)
    assert torch.allclose(split.x_train[:, :3].mean(0), torch.zeros(3), atol=1e-5)
    assert torch.equal(split.x_train[:, 3:].sum(1), torch.ones(36))


def test_preprocessing_is_fitted_on_training_rows_only(tmp_path: Path) -> None:
    frame = flowers()
    frame.to_csv(tmp_path / "a.csv", index=False)
    before = load(str(tmp_path / "a.csv"), "kind").split(0)
    data = load(str(tmp_path / "a.csv"), "kind")
    _, _, test = rows.partition(
        60, np.random.default_rng([0, 0]), train_size=None, strata=data.y, held_out=0, test_rows=0
    )
    frame.loc[test, "length"] = 1e6
    frame.to_csv(tmp_path / "b.csv", index=False)
    after = load(str(tmp_path / "b.csv"), "kind").split(0)
    assert torch.equal(before.x_train, after.x_train)
    assert (after.x_test[:, 0] > 100).all()


def test_what_never_varied_in_training_stays_silent_in_the_test(tmp_path: Path) -> None:
    frame = flowers(100)
    frame["rare"] = "usual"
    frame.loc[7, "rare"] = "odd"
    frame.loc[7, "length"] = np.nan
    frame.to_csv(tmp_path / "f.csv", index=False)
    data = load(str(tmp_path / "f.csv"), "kind")
    widths = set()
    unseen = 0
    for seed in range(12):
        split = data.split(seed)
        widths.add(split.x_train.shape[1])
        dead = (split.x_train == split.x_train[:1]).all(0)
        assert (split.x_test[:, dead] == 0).all()
        unseen += bool(dead.any())
    assert len(widths) == 1  # every seed trains the same network
    assert 0 < unseen < 12


def test_every_reader_gives_the_same_table(tmp_path: Path) -> None:
    frame = flowers()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "semicolon.csv", index=False, sep=";", decimal=",")
    frame.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    typed = frame.assign(colour=frame["colour"].astype("category"), picked=pd.to_datetime(frame["picked"]))
    typed.assign(length=frame["length"].astype("Float64")).to_parquet(tmp_path / "typed.parquet")
    tables = [load(str(path), "kind") for path in sorted(tmp_path.iterdir())]
    assert len(tables) == 6
    assert len({data.fingerprint for data in tables}) == 1


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["no", "yes"] * 20, "classification", ("no", "yes")),
        ([True, False] * 20, "classification", ("False", "True")),
        ([3, 7, 5, 3] * 10, "classification", ("3", "5", "7")),
        ([0.0, 1.0] * 20, "classification", ("0", "1")),
        ([f" {i % 3}" for i in range(40)], "classification", ("0", "1", "2")),
        (list(range(40)), "regression", None),
        ([i / 7 for i in range(40)], "regression", None),
        ([0.5, 1.5, 2.5, 3.5] * 10, "regression", None),
        ([f"2024-01-{1 + i % 28:02d}" for i in range(40)], "regression", None),
    ],
)
def test_the_task_is_read_from_the_target(
    tmp_path: Path, values: list[object], task: str, classes: tuple[str, ...] | None
) -> None:
    pd.DataFrame({"a": np.arange(40) ** 2, "y": values}).to_csv(tmp_path / "t.csv", index=False)
    data = load(str(tmp_path / "t.csv"), "y")
    assert (data.task, data.classes) == (task, classes)
    assert f"read as {task}" in data.description


def test_the_task_can_be_overruled(tmp_path: Path) -> None:
    pd.DataFrame({"a": np.arange(40) ** 2, "y": [3, 7, 5, 3] * 10}).to_csv(tmp_path / "t.csv", index=False)
    data = load(str(tmp_path / "t.csv"), "y", task="regression")
    assert data.task == "regression"
    assert data.split(0).y_train.dtype == torch.float32
    with pytest.raises(BadInput, match="unknown task 'ranking'"):
        load(str(tmp_path / "t.csv"), "y", task="ranking")


def test_ids_infinities_blank_rows_and_repeats_are_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"customer_id": np.arange(40), "a": np.arange(40.0) ** 2, "b": 1.5, "y": [0, 1] * 20})
    frame.loc[3, "b"] = np.inf
    frame = pd.concat([frame, frame.assign(customer_id=frame["customer_id"] + 40)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    with (tmp_path / "t.csv").open("a") as file:
        file.write(",,,\n,,,\n")
    data = load(str(tmp_path / "t.csv"), "y")
    assert data.dropped_rows == 2
    assert data.n == 80
    assert data.warnings == [
        "2 rows were left out: they hold no feature at all",
        "column 'customer_id' was left out: it numbers the rows, as an id does",
        "column 'b' is infinite in 2 rows: read as missing there",
        "40 of 80 rows repeat an earlier row: training and test may share them",
    ]
    assert torch.isfinite(data.split(0).x_train).all()


@pytest.mark.parametrize(
    ("name", "dropped"),
    [("id", True), ("PassengerId", True), ("user_ID", True), ("Unnamed: 0", True), ("humid", False), ("acid", False)],
)
def test_row_numbers_are_known_by_their_names(tmp_path: Path, name: str, dropped: bool) -> None:
    frame = pd.DataFrame({name: range(40), "a": np.arange(40) ** 2, "y": [0, 1] * 20})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load(str(tmp_path / "t.csv"), "y")
    assert (name not in data.x) == dropped
    assert "2 classes (whole numbers)" in data.description


def test_many_categories_become_few(tmp_path: Path) -> None:
    words = [f"town{i % 50}" for i in range(300)] + ["town0"] * 40
    pd.DataFrame({"town": words, "y": [0, 1] * 170}).to_csv(tmp_path / "t.csv", index=False)
    data = load(str(tmp_path / "t.csv"), "y")
    assert data.x["town"].nunique() == 33
    assert data.split(0).x_train.shape[1] == 33


# ---- fingerprints


def test_fingerprints_tell_contents_apart_and_survive_the_process(tmp_path: Path) -> None:
    frame = flowers()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "same.csv", index=False)
    frame.assign(length=frame["length"] + np.eye(1, 60)[0]).to_csv(tmp_path / "b.csv", index=False)
    a, same, b = (load(str(tmp_path / f"{name}.csv"), "kind") for name in ("a", "same", "b"))
    assert a.fingerprint == same.fingerprint != b.fingerprint
    other = load(str(tmp_path / "a.csv"), "colour")
    assert other.fingerprint != a.fingerprint
    program = f"from wellposed.workbench.data import load; print(load({str(tmp_path / 'a.csv')!r}, 'kind').fingerprint)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == a.fingerprint


def test_data_travel_to_other_processes(tmp_path: Path) -> None:
    flowers().to_csv(tmp_path / "a.csv", index=False)
    for data in (load(), load(str(tmp_path / "a.csv"), "kind")):
        copy = pickle.loads(pickle.dumps(data))
        assert copy.fingerprint == data.fingerprint
        assert torch.equal(copy.split(0).x_test, data.split(0).x_test)


# ---- arrays, functions and folders


def test_npz_tables_and_images(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    y = np.arange(40) % 2
    cases = {
        "table": (stream.normal(5, 2, (40, 3)), (3,), "tabular"),
        "one": (stream.normal(size=40), (1,), "tabular"),
        "grey": (stream.random((40, 6, 7)), (1, 6, 7), "image"),
        "first": (stream.integers(0, 256, (40, 3, 6, 7), np.uint8), (3, 6, 7), "image"),
        "last": (stream.integers(0, 256, (40, 6, 7, 3), np.uint8), (3, 6, 7), "image"),
    }
    for name, (x, shape, kind) in cases.items():
        np.savez(tmp_path / f"{name}.npz", x=x, y=y[:, None])
        data = load(str(tmp_path / f"{name}.npz"))
        split = data.split(0)
        assert (data.kind, data.classes) == (kind, ("0", "1"))
        assert split.x_train.shape == (24, *shape)
        over = [0, *range(2, split.x_train.ndim)]
        assert torch.allclose(split.x_train.mean(over), torch.zeros(shape[0]), atol=1e-5)
        assert torch.allclose(split.x_train.std(over, correction=0), torch.ones(shape[0]), atol=1e-4)
    last = np.moveaxis(cases["last"][0], 3, 1)
    assert np.array_equal(load(str(tmp_path / "last.npz")).x, last)


FACTORY = """
import numpy as np, torch
from torch.utils.data import Dataset, TensorDataset, IterableDataset

x, y = torch.arange(80.).view(40, 2), torch.arange(40) % 2

class Pictures(Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return np.full((5, 4, 3), i, np.uint8), i % 3

class Endless(IterableDataset):
    def __iter__(self): return iter(())

def arrays(): return x.numpy(), y.numpy()
def tensors(): return x.clone().requires_grad_(), y
def dataset(): return TensorDataset(x, y)
def pair(): return TensorDataset(x[:30], y[:30]), TensorDataset(x[30:], y[30:])
def pair_of_arrays(): return (x[:30], y[:30]), (x[30:], y[30:])
def pictures(): return Pictures(30), Pictures(12)
def values(): return x, x[:, 0] / 3
def nothing(): return None
def three(): return x, y, y
def words(): return "x", "y"
def endless(): return Endless()
def ragged(): return [(x, y), (x[:, :1], y)]
def unlabelled(): return TensorDataset(x)
def broken(): raise KeyError("no such key")
def needs(path): return x, y
constant = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY)
    (tmp_path / f"{name}_bad.py").write_text("1 / 0")
    (tmp_path / f"{name}_missing.py").write_text("import surely_not_installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize("function", ["arrays", "tensors", "dataset", "pair", "pair_of_arrays"])
def test_functions_return_arrays_or_datasets(factories: str, function: str) -> None:
    data = load(f"{factories}:{function}")
    assert (data.n, data.classes, data.kind) == (40, ("0", "1"), "tabular")
    assert data.held_out == (10 if function.startswith("pair") else 0)
    if data.held_out:
        first, second = data.split(0), data.split(1)
        assert torch.equal(first.y_test, torch.arange(30, 40) % 2)
        assert torch.equal(first.y_test, second.y_test)
        assert (len(first.x_train), len(first.x_val)) == (24, 6)


def test_a_function_may_return_images_or_values(factories: str) -> None:
    pictures = load(f"{factories}:pictures")
    assert pictures.image_shape == (3, 5, 4)
    assert pictures.split(0).x_test.shape == (12, 3, 5, 4)
    assert load(f"{factories}:values").task == "regression"


def paint(path: Path, size: tuple[int, int] = (40, 20), mode: str = "RGB", level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def test_an_image_folder(tmp_path: Path) -> None:
    for i in range(12):
        paint(tmp_path / "cats" / f"{i}.png", level=i)
        paint(tmp_path / "dogs" / f"{i}.jpg", (60, 30), level=i)
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "cats" / ".DS_Store").write_text("")
    (tmp_path / "README.txt").write_text("pictures")
    data = load(str(tmp_path))
    assert data.classes == ("cats", "dogs")
    assert data.image_shape == (3, 16, 32)
    assert data.y.tolist() == [0] * 12 + [1] * 12
    assert data.warnings == ["1 files beside the class folders were left out: README.txt"]
    assert data.split(0).x_train.shape[1:] == (3, 16, 32)
    assert load(str(tmp_path), image_size=64).image_shape == (3, 25, 50)


def test_small_grey_images_keep_their_size_and_values(tmp_path: Path) -> None:
    for i in range(6):
        for name, level in (("dark", 10), ("light", 200)):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            if i % 2:
                Image.fromarray(np.full((9, 8), level + i, np.uint8)).save(path)
            else:
                Image.fromarray(np.full((9, 8), (level + i) * 256, np.uint16)).save(path)  # 16-bit grey
    data = load(str(tmp_path))
    assert data.image_shape == (1, 9, 8)
    assert data.x[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 15, 200, 201, 202, 203, 204, 205]


# ---- corruptions


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for kind, known in corruptions._KNOWN.items() for name in known],
)
def test_corruptions_shift_the_test_inputs_only(name: str, kind: str) -> None:
    data = load({"tabular": "wine", "image": "digits", "text": "text"}[kind])
    plain, shifted, again = data.split(0), data.split(0, corrupt=name), data.split(0, corrupt=name.upper())
    for part in ("x_train", "y_train", "x_val", "y_val", "y_test"):
        assert torch.equal(getattr(plain, part), getattr(shifted, part))
    assert shifted.x_test.shape == plain.x_test.shape
    assert shifted.x_test.dtype == plain.x_test.dtype
    assert not torch.equal(shifted.x_test, plain.x_test)
    assert torch.equal(shifted.x_test, again.x_test)


@pytest.mark.parametrize("text", ["gaussian:0", "dropout:0", "scale:1", "blur:0", "invert:0", "contrast:0"])
def test_corruptions_of_no_severity_change_nothing(text: str) -> None:
    assert torch.equal(load().split(0, corrupt=text).x_test, load().split(0).x_test)


def test_corruptions_do_what_their_names_say() -> None:
    data = load()
    plain = data.split(0).x_test
    assert torch.allclose(data.split(0, corrupt="invert").x_test, 1 - plain)
    assert (data.split(0, corrupt="gaussian:0.5").x_test - plain).std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(data.split(0, corrupt="dropout:1").x_test, torch.zeros_like(plain))
    flat = data.split(0, corrupt="contrast:1").x_test
    assert torch.allclose(flat, plain.mean(1, keepdim=True).expand_as(plain), atol=1e-6)
    stream = np.random.default_rng(0)
    level = corruptions.parse("blur:1.5", "image")(torch.full((2, 3, 5, 4), 0.7), stream)
    assert torch.allclose(level, torch.full_like(level, 0.7))
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    blurred = corruptions.parse("blur:1", "image")(point, stream)[0, 0]
    assert torch.allclose(blurred, blurred.T)
    assert blurred[4, 5] / blurred[4, 4] == pytest.approx(np.exp(-0.5), rel=1e-5)


# ---- what is refused


def refused(match: str, *args: object, **options: object) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        load(*args, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("nowhere.csv", "no file or folder nowhere.csv"),
        ("some/where", "no file or folder some/where"),
        ("digit", "unknown data set 'digit': did you mean digits"),
        ("imagenet", "known are digits, breast_cancer"),
        ("nowhere.csv:target", "there is no module 'nowhere"),
    ],
)
def test_missing_sources_are_refused(source: str, match: str) -> None:
    refused(match, source)


def test_options_that_do_not_fit_the_source_are_refused(tmp_path: Path) -> None:
    refused("--target is for tables", "digits", "y")
    refused("task cannot be chosen for digits", "digits", task="regression")
    refused("notes.docx is of no known kind", write(tmp_path / "notes.docx", "x"))


TABLES = {
    "empty file": ("", "y", "is an empty file"),
    "header only": ("a,y\n", "y", "is empty"),
    "newlines only": ("\n\n\n", "y", "is empty"),
    "no target": ("a,b,y\n" + "1,2,3\n" * 20, None, "needs --target .* one of a, b, y"),
    "unknown column": ("size,kind\n" + "1,2\n" * 20, "knd", "no column 'knd': did you mean 'kind'.* size, kind"),
    "no header": ("5.1,3.5,setosa\n" + "5,3,setosa\n" * 20, "kind", "lack a header line"),
    "few rows": ("a,y\n1,0\n2,1\n3,0\n", "y", "has only 3 rows: at least 10"),
    "one class": ("a,y\n" + "".join(f"{i * i},no\n" for i in range(20)), "y", "single value no in all 20 rows"),
    "one value": ("a,y\n" + "".join(f"{i * i},1.5\n" for i in range(20)), "y", "single value 1.5"),
    "target gaps": ("a,y\n" + "".join(f"{i},{'' if i < 3 else i % 2}\n" for i in range(20)), "y", "in 3 of 20 rows"),
    "word gaps": ("a,y\n" + "".join(f"{i},{'' if i < 3 else 'ab'[i % 2]}\n" for i in range(20)), "y", "in 3 of 20"),
    "target inf": ("a,y\n" + "".join(f"{i},{'inf' if i < 3 else i}\n" for i in range(20)), "y", "infinite in 3 of 20"),
    "all constant": ("a,b,y\n" + "".join(f"1,x,{i % 2}\n" for i in range(20)), "y", "no feature .*'a' .*'b' "),
    "only target": ("y\n" + "0\n1\n" * 10, "y", "no feature to learn from: the target is its only column"),
    "all classes": ("a,y\n" + "".join(f"{i * i},n{i}\n" for i in range(20)), "y", "20 classes in only 20 rows"),
    "ragged": ("a,y\n1,2\n1,2,3,4\n" + "1,2\n" * 20, "y", "cannot be read as a csv table"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables_are_refused(tmp_path: Path, case: str) -> None:
    text, target, match = TABLES[case]
    (tmp_path / "t.csv").write_text(text)
    refused(match, str(tmp_path / "t.csv"), target)


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("größe,y\n1,2\n".encode("latin-1") * 20)
    refused("not text in UTF-8", str(tmp_path / "latin.csv"), "y")
    (tmp_path / "not.parquet").write_text("hello" * 10)
    refused("cannot be read as a parquet table", str(tmp_path / "not.parquet"), "y")
    (tmp_path / "not.npz").write_text("hello")
    refused("cannot be read as an .npz", str(tmp_path / "not.npz"))
    pd.DataFrame({"a": [[1], [2]] * 10, "y": [0, 1] * 10}).to_parquet(tmp_path / "lists.parquet")
    refused("column 'a' holds lists", str(tmp_path / "lists.parquet"), "y")
    words = "a,y\n" + "".join(f"{i * i},{'ab'[i % 2]}\n" for i in range(20))
    refused("holds words, which cannot be a regression", write(tmp_path / "w.csv", words), "y", task="regression")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.ones((20, 2))}, "no array 'y'"),
        ({"a": np.ones(3), "y": np.ones(3)}, r"no array 'x'.* \(it holds a, y\)"),
        ({"x": np.ones((20, 2)), "y": np.ones(19)}, "do not fit"),
        ({"x": np.ones((20, 2)), "y": np.ones((20, 3))}, "do not fit"),
        ({"x": np.array([[1, np.nan], [1, 2]] * 10), "y": np.arange(20) % 2}, "not finite in 10 of 20 rows"),
        ({"x": np.array([[np.inf]] + [[1.0]] * 19), "y": np.arange(20) % 2}, "not finite in 1 of 20 rows"),
        ({"x": np.ones((20, 2)), "y": np.arange(20) % 2}, "all rows of x are the same"),
        ({"x": np.array([["a"], ["b"]] * 10), "y": np.arange(20) % 2}, "numbers are needed"),
        ({"x": np.random.default_rng(0).random((20, 5, 6, 7)), "y": np.arange(20) % 2}, "no images"),
        ({"x": np.arange(20.0), "y": np.array([np.nan, *range(19)])}, "no value in 1 of 20 rows"),
        ({"x": np.arange(4.0), "y": np.arange(4) % 2}, "only 4 rows"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, "only 0 rows"),
    ],
)
def test_bad_npz_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(match, str(tmp_path / "a.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([[1], {}], dtype=object), y=np.arange(2))
    refused("cannot be read as an .npz of plain arrays", str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("suffix", "match"),
    [
        ("_absent:f", "there is no module 'factories"),
        ("_bad:f", "fails with ZeroDivisionError"),
        ("_missing:f", "needs 'surely_not_installed', which is missing"),
        (".py:arrays", "must name a module, not a file"),
        (":array", "did you mean 'arrays'"),
        (":constant", "is int, not a function"),
        (":nothing", "returned NoneType: it must return"),
        (":three", "returned tuple: it must return"),
        (":words", "pair of str and str"),
        (":endless", "without a length"),
        (":ragged", "different shapes"),
        (":unlabelled", "must be .x, y. pairs"),
        (":broken", "fails with KeyError: 'no such key'"),
        (":needs", "calling it without arguments fails with TypeError"),
    ],
)
def test_bad_functions_are_refused(factories: str, suffix: str, match: str) -> None:
    refused(match, factories + suffix)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    refused("at least two: it holds none", str(tmp_path))
    for i in range(4):
        paint(tmp_path / "cats" / f"{i}.png", level=i)
    refused("it holds only 'cats'", str(tmp_path))
    (tmp_path / "dogs").mkdir()
    refused("dogs is empty", str(tmp_path))
    paint(tmp_path / "dogs" / "0.png")
    refused("only 5 images", str(tmp_path))
    (tmp_path / "dogs" / "notes.txt").write_text("no picture")
    refused("notes.txt is not an image", str(tmp_path))
    whole = (tmp_path / "dogs" / "0.png").read_bytes()
    (tmp_path / "dogs" / "notes.txt").unlink()
    (tmp_path / "dogs" / "0.png").write_bytes(whole[: len(whole) // 2])
    refused("0.png is not an image", str(tmp_path))
    (tmp_path / "dogs" / "0.png").unlink()
    (tmp_path / "dogs" / "deeper").mkdir()
    refused("deeper is a folder inside a class folder", str(tmp_path))
    refused("image size 0 is too small", str(tmp_path), image_size=0)


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("digits", {"seed": -1}, "seed -1 is negative"),
        ("digits", {"train_size": -5}, "training size -5 is too small"),
        ("digits", {"train_size": 0}, "training size 0 is too small"),
        ("digits", {"train_size": 1790}, "too large.* at most 1787"),
        ("digits", {"label_noise": 1.0}, r"outside \[0, 1\)"),
        ("digits", {"label_noise": -0.1}, r"outside \[0, 1\)"),
        ("digits", {"label_noise": float("nan")}, r"outside \[0, 1\)"),
        ("text", {"label_noise": 0.1}, "text"),
        ("digits", {"corrupt": "fog"}, "unknown corruption 'fog' .* gaussian, dropout, scale, blur, invert, contrast"),
        ("wine", {"corrupt": "blur"}, "unknown corruption 'blur' for tabular data: choose from gaussian"),
        ("digits", {"corrupt": "dropout:2"}, "between 0 and 1"),
        ("digits", {"corrupt": "gaussian:much"}, "severity 'much'"),
        ("digits", {"corrupt": "gaussian:inf"}, "severity 'inf'"),
    ],
)
def test_bad_splits_are_refused(name: str, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        load(name).split(**{"seed": 0, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
