"""Default networks for each kind of data, and networks of the user's own."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wellposed.workbench import models
from wellposed.workbench.data import Data, load
from wellposed.workbench.errors import BadInput


def pictures(channels: int, height: int, width: int, task: str = "classification") -> Data:
    stream = np.random.default_rng(0)
    x = stream.integers(0, 256, (40, channels, height, width), np.uint8)
    shape = (channels, height, width)
    if task == "regression":
        return Data("pictures", "regression", "image", "", x, stream.normal(size=40), image_shape=shape)
    return Data("pictures", "classification", "image", "", x, np.arange(40) % 3, tuple("abc"), image_shape=shape)


CASES = {
    "digits": (lambda: load("digits"), None, (5, 10)),
    "digits as images": (lambda: load("digits"), "cnn", (5, 10)),
    "table": (lambda: load("wine"), None, (5, 3)),
    "regression": (lambda: load("diabetes"), None, (5,)),
    "text": (lambda: load("text"), None, None),
    "images": (lambda: pictures(3, 32, 20), None, (5, 3)),
    "images flat": (lambda: pictures(3, 6, 7), "MLP", (5, 3)),
    "a pixel": (lambda: pictures(1, 1, 1), None, (5, 3)),
    "values of images": (lambda: pictures(1, 9, 8, "regression"), None, (5,)),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes_gradients_and_determinism(case: str) -> None:
    make, spec, shape = CASES[case]
    data = make()
    split = data.split(0)
    state = torch.get_rng_state()
    model = models.build(spec, data, split, seed=3)
    again = models.build(spec, data, split, seed=3)
    other = models.build(spec, data, split, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    out = model(split.x_train[:5])
    if data.task == "language":
        assert data.classes is not None
        shape = (*split.y_train[:5].shape, len(data.classes))
    assert out.shape == shape
    if data.task == "regression":
        loss = F.mse_loss(out, split.y_train[:5])
    else:
        loss = F.cross_entropy(out.flatten(0, -2), split.y_train[:5].flatten())
        assert loss < 2 * np.log(out.shape[-1])  # a fresh network is nearly undecided
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any() or case == "a pixel", name


def test_the_mlp_is_the_one_of_the_default_arena() -> None:
    data = load()
    model = models.build(None, data, data.split(0), seed=0)
    assert [tuple(weight.shape) for weight in model.parameters() if weight.ndim == 2] == [
        (128, 64),
        (128, 128),
        (10, 128),
    ]
    assert [name for name, _ in model.named_children()] == ["hidden1", "relu1", "hidden2", "relu2", "head"]


def test_the_transformer_sees_no_future_and_learns() -> None:
    data = load("text")
    split = data.split(0)
    model = models.build(None, data, split, seed=0)
    ids = split.x_train[:4].clone()
    before = model(ids)
    ids[:, 20:] = (ids[:, 20:] + 1) % len(data.classes or ())
    after = model(ids)
    assert torch.allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert not torch.allclose(before[:, 20:], after[:, 20:], atol=1e-2)
    assert model(ids[:, :7]).shape[1] == 7

    x, y = split.x_train[:16], split.y_train[:16]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1.5


def test_the_transformer_has_second_derivatives() -> None:
    data = load("text")
    split = data.split(0)
    model = models.build(None, data, split, seed=0)
    loss = F.cross_entropy(model(split.x_train[:2]).flatten(0, 1), split.y_train[:2].flatten())
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_features, out_features=7, width=12):
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features)
        self.layer = nn.Linear(in_features, out_features)
    def forward(self, x): return self.layer(self.norm(x))

def named(features, classes, shape):
    assert (features,) == shape
    return nn.Sequential(nn.Linear(features, 5), nn.Dropout(0.5), nn.Linear(5, classes))
def plain(): return nn.Linear(13, 3)
def lazy(**options):
    assert not options
    return nn.LazyLinear(3)
def value(in_features): return nn.Linear(in_features, 1)
def flat(in_features): return nn.Sequential(nn.Linear(in_features, 1), nn.Flatten(0))
def tokens(classes, features):
    return nn.Sequential(nn.Embedding(features, 8), nn.Linear(8, classes))
def wrong(): return nn.Linear(13, 4)
def narrow(): return nn.Linear(12, 3)
def nothing(): return None
def needs(depth): return nn.Linear(13, 3)
def broken(): raise RuntimeError("out\\nof luck")
class Pair(nn.Module):
    def forward(self, x): return x, x
number = 3
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"networks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize("function", ["Net", "named", "plain", "lazy"])
def test_own_networks(networks: str, function: str) -> None:
    data = load("wine")
    split = data.split(0)
    state = torch.get_rng_state()
    model = models.build(f"{networks}:{function}", data, split, seed=1)
    again = models.build(f"{networks}:{function}", data, split, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert model(split.x_train[:4]).shape == (4, 3)
    for name, value in again.state_dict().items():
        if "running" in name:
            assert torch.equal(value, torch.full_like(value, float("var" in name)))  # the trial left no trace
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", ["value", "flat"])
def test_own_networks_of_values_give_one_number_a_row(networks: str, function: str) -> None:
    data = load("diabetes")
    split = data.split(0)
    assert models.build(f"{networks}:{function}", data, split, seed=0)(split.x_train[:6]).shape == (6,)


def test_own_networks_of_text(networks: str) -> None:
    data = load("text")
    split = data.split(0)
    out = models.build(f"{networks}:tokens", data, split, seed=0)(split.x_train[:2])
    assert out.shape == (2, 48, len(data.classes or ()))


@pytest.mark.parametrize(
    ("spec", "source", "match"),
    [
        ("resnet", "wine", "unknown model 'resnet': choose mlp, cnn, transformer"),
        ("cnn", "wine", "model cnn needs images, but wine is a table"),
        ("transformer", "digits", "model transformer does not fit image data: choose mlp or cnn"),
        ("mlp", "text", "model mlp does not fit text data: choose transformer"),
        ("absent_networks:f", "wine", "there is no module 'absent_networks'"),
        (":nett", "wine", "has no 'nett'; did you mean 'Net'"),
        (":number", "wine", "is int, not a function"),
        (":nothing", "wine", "returned NoneType: it must return a torch.nn.Module"),
        (":needs", "wine", "needs an argument 'depth'"),
        (":broken", "wine", "calling it fails with RuntimeError: out of luck"),
        (":wrong", "wine", r"turns 2 rows into \(2, 4\): \(2, 3\) is needed for wine"),
        (":narrow", "wine", r"fails on inputs of shape \(2, 13\) with RuntimeError"),
        (":Pair", "wine", r"turns 2 rows into tuple"),
        (":wrong", "diabetes", r"fails on inputs of shape \(2, 10\)"),
    ],
)
def test_bad_models_are_refused(networks: str, spec: str, source: str, match: str) -> None:
    data = load(source)
    with pytest.raises(BadInput, match=match) as caught:
        models.build(networks + spec if spec.startswith(":") else spec, data, data.split(0), seed=0)
    assert "\n" not in str(caught.value)
