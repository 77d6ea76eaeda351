"""Permutation symmetries, matching and merging."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wellposed.weights.git_re_basin import (
    PermutationSpec,
    activation_matching,
    interpolated,
    loss_barrier,
    merge_many,
    permuted,
    ste_matching,
    weight_matching,
)


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual sum, a depthwise and a grouped layer, pooling and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.bn2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.mix, self.grouped = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.flat, self.head = nn.Linear(4 * 16, 10), nn.Linear(10, 3)
        self.pooled = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn(self.stem(x)))
        h = F.relu(h + self.bn2(self.two(F.relu(self.bn1(self.one(h))))))
        h = F.max_pool2d(self.depthwise(h), 2)
        flat = self.flat(torch.flatten(self.grouped(self.mix(h)), 1))
        return self.head(torch.tanh(flat)) + self.pooled(h.mean((2, 3)))


class Transformer(nn.Module):
    """A residual stream over positions, attention, tied feed-forward layers, a norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 8), nn.Parameter(torch.randn(5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 8)
        self.gate = nn.Parameter(torch.randn(12))
        self.again = nn.Linear(8, 12)
        self.again.weight = self.up.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.down(self.norm(F.gelu(self.up(h)) * self.gate))
        h = h + self.down(self.again(h))
        return self.head(h.mean(1))


def conv_chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(27, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3),
    )  # fmt: skip


def mlp(seed: int = 0, width: int = 16) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def shuffled(spec: PermutationSpec, state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {u: torch.randperm(n, generator=g) for u, n in spec.sizes(state).items()}


CASES = [
    (mlp, (6,), 2), (conv_chain, (1, 8, 8), 3), (Residual, (1, 8, 8), 3), (Transformer, (5, 8), 1),
]  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "units"), CASES)
def test_permuted_nets_compute_the_same(build: type[nn.Module], shape: tuple[int, ...], units: int) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(4, *shape, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():  # gains that differ by channel
            p.add_(0.1 * torch.randn_like(p))
    for _ in range(2):
        model(x)  # running statistics that differ by channel
    model.eval()
    spec = PermutationSpec.of(model, x)
    assert len(spec.units()) == units
    before = model(x)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    perms = shuffled(spec, state, seed=1)
    assert not any(torch.equal(p, torch.arange(len(p))) for p in perms.values())
    model.load_state_dict(permuted(spec, perms, state))
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-13)
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, state[n])]
    assert set(changed) == set(spec.axes)


@pytest.mark.parametrize(("build", "shape", "units"), CASES)
def test_a_planted_permutation_is_recovered_exactly(build: type[nn.Module], shape: tuple[int, ...], units: int) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(8, *shape)
    spec = PermutationSpec.of(model, x)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    other = permuted(spec, shuffled(spec, state, seed=2), state)
    back = permuted(spec, weight_matching(spec, state, other), other)
    assert all(torch.equal(back[n], state[n]) for n in state)
    twin = build().eval()
    twin.load_state_dict(other)
    back = permuted(spec, activation_matching(spec, model.eval(), twin, [x]), other)
    assert all(torch.equal(back[n], state[n]) for n in state)


def test_one_layer_is_a_linear_assignment_solved_exactly() -> None:
    """All 24 permutations of four hidden units, by hand: biases and both weights count."""
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict() for _ in range(2))
    spec = PermutationSpec({"0.weight": ("h", None), "0.bias": ("h",), "2.weight": (None, "h")})

    def agreement(p: tuple[int, ...]) -> float:
        order = list(p)
        terms = [a["0.weight"] * b["0.weight"][order], a["0.bias"] * b["0.bias"][order]]
        return sum(float(t.sum()) for t in [*terms, a["2.weight"] * b["2.weight"][:, order]])

    best = max(itertools.permutations(range(4)), key=agreement)
    assert weight_matching(spec, a, b)["h"].tolist() == list(best)


def test_matching_never_moves_away() -> None:
    a, b = mlp(1).state_dict(), mlp(2).state_dict()
    spec = PermutationSpec.of(mlp(), torch.zeros(1, 6))

    def distance(s: Mapping[str, Tensor]) -> float:
        return sum(float((a[n] - s[n]).square().sum()) for n in a)

    for seed in range(5):
        assert distance(permuted(spec, weight_matching(spec, a, b, seed=seed), b)) < distance(b)


def test_square_weights_on_one_group_of_units() -> None:
    """x + W x: rows and columns of W move together, and the assignment is no longer exact."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.mix, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.one(x))
            return self.out(h + self.mix(h))

    torch.manual_seed(0)
    model, x = Square(), torch.randn(5, 3)
    spec = PermutationSpec.of(model, x)
    assert len(spec.units()) == 1
    state = model.state_dict()
    other = permuted(spec, shuffled(spec, state, 3), state)
    back = permuted(spec, weight_matching(spec, state, other), other)
    assert all(torch.equal(back[n], state[n]) for n in state)


def trained(seed: int) -> nn.Sequential:
    x, y = task()
    model = mlp(seed, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    return model


def task() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=g)
    return x, (x[:, :3] * x[:, 3:]).argmax(1)


def loss(model: nn.Module) -> Tensor:
    x, y = task()
    return F.cross_entropy(model(x), y)


def test_barriers_fall_and_many_merge() -> None:
    nets = [trained(seed) for seed in range(3)]
    states = [n.state_dict() for n in nets]
    spec = PermutationSpec.of(nets[0], torch.zeros(1, 6))
    naive, way = loss_barrier(nets[0], states[0], states[1], loss)
    assert len(way) == 11
    assert way[0] == pytest.approx(float(loss(nets[0]).detach()))
    matched = permuted(spec, weight_matching(spec, states[0], states[1]), states[1])
    by_weights = loss_barrier(nets[0], states[0], matched, loss)[0]
    assert by_weights < 0.6 * naive
    through = ste_matching(spec, nets[0], states[0], states[1], lambda m, step: loss(m), steps=15)
    mid = loss_barrier(nets[0], states[0], permuted(spec, through, states[1]), loss, points=3)[1][1]
    assert mid <= loss_barrier(nets[0], states[0], matched, loss, points=3)[1][1]
    together = merge_many(spec, states)
    held = mlp(0, 32)

    def merged(found: list[dict[str, Tensor]]) -> float:
        held.load_state_dict({n: torch.stack([s[n] for s in found]).mean(0) for n in states[0]})
        return float(loss(held).detach())

    assert merged(together) < merged([dict(s) for s in states])
    for s, net in zip(together, nets, strict=True):
        held.load_state_dict(s)
        torch.testing.assert_close(held(task()[0]), net(task()[0]), rtol=1e-4, atol=1e-5)


def test_interpolation_leaves_counts_alone() -> None:
    a, b = nn.BatchNorm1d(2).state_dict(), nn.BatchNorm1d(2).state_dict()
    b["running_mean"] += 2
    b["num_batches_tracked"] += 5
    mid = interpolated(a, b, 0.25)
    assert torch.equal(mid["running_mean"], torch.full((2,), 0.5))
    assert mid["num_batches_tracked"] == 0


def test_what_it_refuses() -> None:
    spec = PermutationSpec.of(mlp(), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="different widths"):
        weight_matching(spec, mlp().state_dict(), mlp(width=8).state_dict())
    with pytest.raises(ValueError, match=r"axes of 'nothing' do not fit"):
        PermutationSpec({"nothing": ("h",)}).sizes(mlp().state_dict())
    with pytest.raises(ValueError, match=r"'2.weight' has 16 entries where h has 3 x 1"):
        PermutationSpec({"4.bias": ("h",), "2.weight": ("h", None)}).sizes(mlp().state_dict())
    with pytest.raises(ValueError, match="at least two nets"):
        merge_many(spec, [mlp().state_dict()])

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"cannot trace this model .*: give the axes by hand"):
        PermutationSpec.of(Branching(), torch.zeros(1))
