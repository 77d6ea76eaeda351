"""Neural ODEs, what their solver estimates, and the penalty on it."""

from __future__ import annotations

import copy
import math
import pickle
import sys

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import wellposed as wp
from wellposed.science.neural_ode import NeuralODE, SolverEstimates
from wellposed.science.solver_heuristics import Estimate, SolverHeuristics


class Linear(nn.Module):
    """dy/dt = A y."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.A.T


class Timed(nn.Module):
    """dy/dt depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 3)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.net(y)) * (1 + torch.sin(4 * t))


def rotation() -> Tensor:
    return torch.tensor([[-0.3, 2.0], [-2.0, -0.1]], dtype=torch.float64)


def start() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def heard(layer: NeuralODE, y: Tensor) -> tuple[Tensor, SolverEstimates]:
    """What a layer returns, and its estimates with their graph."""
    found: list[SolverEstimates] = []
    hook = layer.estimates.register_forward_hook(lambda module, args, out: found.append(out))
    result = layer(y)
    hook.remove()
    return result, found[0]


# ---- the solution
def test_linear_dynamics_have_a_closed_form() -> None:
    y, A = start(), rotation()
    for tolerance, largest in ((1e-4, 1e-2), (1e-8, 1e-6)):  # a hundredfold: the errors of up to thirty steps add up
        field = Linear(A.clone())
        layer = NeuralODE(field, rtol=tolerance, atol=tolerance)
        exact = y @ torch.linalg.matrix_exp(A).T
        assert (layer(y) - exact).abs().max() < largest
        layer(y).square().sum().backward()
        matrix = A.clone().requires_grad_()
        (y @ torch.linalg.matrix_exp(matrix).T).square().sum().backward()
        assert field.A.grad is not None
        assert matrix.grad is not None
        assert (field.A.grad - matrix.grad).abs().max() < 50 * largest


def test_several_times_and_back() -> None:
    y, A = start(), rotation()
    several = NeuralODE(Linear(A), (0.0, 0.5, 1.5), rtol=1e-7, atol=1e-7)(y)
    exact = torch.stack([y @ torch.linalg.matrix_exp(A * t).T for t in (0.0, 0.5, 1.5)], 1)
    torch.testing.assert_close(several, exact, rtol=0, atol=1e-5)
    back = NeuralODE(Linear(A), (1.5, 0.0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back(several[:, -1]), y, rtol=0, atol=1e-5)
    assert back.last is not None
    assert float(back.last.error) > 0  # steps are negative


# ---- the estimates, by explicit loops over the steps that the solver takes by itself
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
FIFTH = (*STAGES[6], 0)
FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)


def by_loops(field: Timed, y: Tensor, steps: list[tuple[float, float]], tolerance: float) -> tuple[Tensor, Tensor]:
    """Error and stiffness of steps (t, h) whose sizes are constants: Dormand and Prince's pair as they give it."""
    error = stiffness = torch.zeros(())
    for t, h in steps:
        slopes: list[Tensor] = []
        now = y
        for node, row in zip(NODES, STAGES, strict=True):
            state = y + h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros(()))
            before, now = now, state
            slopes.append(field(torch.tensor(t + node * h, dtype=y.dtype), state))
        gap = h * sum((b - c) * k for b, c, k in zip(FIFTH, FOURTH, slopes, strict=True))
        scaled = (2 / 3) * gap / (tolerance + tolerance * torch.maximum(y.abs(), now.abs()))  # the solver's companion
        error = error + scaled.square().mean().sqrt() * abs(h)
        stiffness = stiffness + (slopes[6] - slopes[5]).norm() / (now - before).norm()
        y = now
    return error, stiffness


class Watched:
    """The dynamics for the solver alone: its accepted steps, and how often it evaluates."""

    def __init__(self, field: Timed) -> None:
        self.field, self.steps, self.evaluations = field, list[tuple[float, float]](), 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        slope: Tensor = self.field(t, y)
        return slope

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.steps.append((float(t.detach()), float(h.detach())))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-7])
def test_estimates_and_their_gradient_by_explicit_loops(tolerance: float) -> None:
    """Values and gradients are those of the given steps: their sizes are constants, and nothing is evaluated twice."""
    torch.manual_seed(0)
    field = Timed().double()
    with torch.no_grad():
        field.net.weight.mul_(6)
    y = torch.randn(4, 3, dtype=torch.float64)
    watched = Watched(field)
    plain = odeint(watched, y, torch.tensor([0.0, 1.0]).double(), rtol=tolerance, atol=tolerance, method="dopri5")[-1]
    layer = NeuralODE(field, autonomous=False, rtol=tolerance, atol=tolerance)
    result, found = heard(layer, y)
    torch.testing.assert_close(result, plain, rtol=0, atol=1e-13)
    assert found.evaluations == watched.evaluations == 2 + 6 * (found.steps + found.rejected)
    assert found.steps == len(watched.steps)
    error, stiffness = by_loops(field, y, watched.steps, tolerance)
    torch.testing.assert_close(found.error, error, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.stiffness, stiffness, rtol=1e-7, atol=0)  # 1e-12 is added to a denominator of 1e-4
    for mine, theirs in ((found.error, error), (found.stiffness, stiffness)):
        of_layer = torch.autograd.grad(mine, list(field.parameters()), retain_graph=True)
        of_loops = torch.autograd.grad(theirs, list(field.parameters()), retain_graph=True)
        for a, b in zip(of_layer, of_loops, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm()
    assert layer.last is not None
    assert not layer.last.error.requires_grad


def test_stiffness_of_a_decay_is_its_rate() -> None:
    layer = NeuralODE(Linear(torch.tensor([[-7.0]], dtype=torch.float64)), rtol=1e-4, atol=1e-4)
    layer(torch.ones(3, 1, dtype=torch.float64))
    assert layer.last is not None
    assert float(layer.last.stiffness) == pytest.approx(7 * layer.last.steps, rel=1e-4)


def test_batch_size_does_not_matter() -> None:
    layer = NeuralODE(Linear(rotation()))
    once, thrice = heard(layer, start())[1], heard(layer, start().repeat(3, 1))[1]
    assert once.evaluations == thrice.evaluations
    torch.testing.assert_close(once.error, thrice.error, rtol=1e-9, atol=0)
    torch.testing.assert_close(once.stiffness, thrice.stiffness, rtol=1e-6, atol=0)


def test_dynamics_at_rest_have_a_gradient() -> None:
    """A last layer of zeros, as nets often start: no error, no motion, and gradients without NaN."""
    last = nn.Linear(4, 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    field = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), last)
    result, found = heard(NeuralODE(field), torch.randn(3, 2))
    assert float(found.error.detach()) == float(found.stiffness.detach()) == 0
    torch.autograd.backward(result.sum() + found.error + found.stiffness)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())


# ---- the layer
def test_a_layer_like_any_other() -> None:
    layer = NeuralODE(nn.Linear(2, 2))
    layer(torch.randn(3, 2))
    assert list(layer.state_dict()) == ["dynamics.weight", "dynamics.bias"]
    assert copy.deepcopy(layer).last == layer.last
    assert pickle.loads(pickle.dumps(layer)).last.evaluations == layer.last.evaluations  # type: ignore[union-attr]
    assert "rtol=1e-05" in repr(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 2).bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"in float32 at least; its dynamics are in torch\.bfloat16"):
        layer.bfloat16()(torch.randn(3, 2).bfloat16())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of the compiler
def test_compiled_around_the_solver() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), NeuralODE(nn.Linear(2, 2)), nn.Linear(2, 2))
    torch._dynamo.reset()
    x = torch.randn(4, 2)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-7)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for times in ((0.0,), (0.0, 1.0, 0.5), (1.0, 1.0)):
        with pytest.raises(ValueError, match="times rise or fall, and are at least two"):
            NeuralODE(nn.Linear(2, 2), times)
    with pytest.raises(ValueError, match=r"rtol and atol must be above 0, got 0\.0 and 1e-05"):
        NeuralODE(nn.Linear(2, 2), rtol=0.0)
    with pytest.raises(ValueError, match=r"a slope \(4, 3\) for a state \(4, 2\)"):
        NeuralODE(nn.Linear(2, 3))(torch.randn(4, 2))
    explosive = NeuralODE(Linear(torch.tensor([[math.inf]])))
    with pytest.raises(RuntimeError, match=r"stuck after 2 evaluations \(underflow in dt"):
        explosive(torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="stuck after 2 evaluations"):
        NeuralODE(nn.Linear(2, 2))(torch.full((1, 2), math.nan))
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'wellposed\[science\]'"):
        NeuralODE(nn.Linear(2, 2))(torch.randn(4, 2))


# ---- the penalty
def conv() -> nn.Module:
    """Features with BatchNorm that flow along a small convolution, twice."""
    flows = [NeuralODE(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()), rtol=1e-3, atol=1e-3) for _ in range(2)]
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), flows[0],
        nn.MaxPool2d(2), flows[1], nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def transformer() -> nn.Module:
    """A transformer of continuous depth."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(NeuralODE(layer, rtol=1e-2, atol=1e-2), nn.Flatten(), nn.Linear(32, 3))


@pytest.mark.parametrize(
    ("build", "shape", "estimate"), [(conv, (1, 8, 8), "error"), (transformer, (4, 8), "stiffness")]
)
def test_sums_over_layers_and_trains(build: type, shape: tuple[int, ...], estimate: Estimate) -> None:
    torch.manual_seed(0)
    model = build()
    method = SolverHeuristics(estimate=estimate, strength=0.02)
    recipe = wp.Recipe(wp.SAM(), method).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = {"x": torch.randn(6, *shape), "y": torch.arange(6) % 3}
    first = recipe.step(batch, optimizer)
    twin = build()
    twin.load_state_dict(model.state_dict())
    terms = [recipe.step(batch, optimizer) for _ in range(4)]
    twin.train()(batch["x"])
    lasts = [m.last for m in twin.modules() if isinstance(m, NeuralODE)]
    found = sum(float(getattr(last, estimate)) for last in lasts)
    assert float(terms[0]["SolverHeuristics"]) == pytest.approx(0.02 * found, rel=1e-4)
    assert terms[-1]["task"] < first["task"]


def test_both_estimates_with_strengths_of_their_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(NeuralODE(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))), nn.Linear(2, 2))
    recipe = wp.Recipe(
        SolverHeuristics(strength=wp.Exponential(1.0, 0.1)), SolverHeuristics(estimate="stiffness", strength=0.01)
    ).attach(model, wp.Classify(classes=2), steps=10)
    batch = {"x": torch.randn(6, 2), "y": torch.arange(6) % 2}
    terms = recipe.step(batch, torch.optim.SGD(model.parameters(), lr=0.0))
    last = model[0].last
    assert isinstance(last, SolverEstimates)
    assert terms["SolverHeuristics.1"] == last.error
    assert float(terms["SolverHeuristics.2"]) == pytest.approx(0.01 * float(last.stiffness), rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(wp.RecipeError, match="SolverHeuristics acts on neural ODEs, and the model has none"):
        wp.Recipe(SolverHeuristics()).attach(nn.Linear(2, 2), wp.Classify(classes=2))
    with pytest.raises(ValueError, match="estimate must be 'error' or 'stiffness', got 'steps'"):
        SolverHeuristics(estimate="steps")  # type: ignore[arg-type]
