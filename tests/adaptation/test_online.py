"""Tent and EATA: adapting normalisation layers to a stream, and giving the model back."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.adaptation._online import norm_parameters
from wellposed.adaptation.eata import EATA, reliable_and_new
from wellposed.adaptation.tent import Tent
from wellposed.parts.fisher import fisher_diagonal
from wellposed.tasks.targets import conditional_entropy


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )


def transformer() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 5))


MODELS = {"conv": (conv, (1, 8, 8)), "transformer": (transformer, (5, 8))}


def inputs(kind: str, seed: int = 1, rows: int = 16) -> Tensor:
    return torch.randn(rows, *MODELS[kind][1], generator=torch.Generator().manual_seed(seed))


def test_entropy_by_loops_and_its_extremes() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, found in zip(logits, conditional_entropy(logits), strict=True):
        p = [math.exp(v) for v in row]
        expected = -sum(a / sum(p) * math.log(a / sum(p)) for a in p)
        assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(conditional_entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8))
    assert float(conditional_entropy(torch.tensor([[1000.0, 0.0]]))) == 0  # no NaN from 0 log 0
    assert torch.autograd.gradcheck(conditional_entropy, (logits.requires_grad_(),))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("make", [Tent, partial(EATA, entropy_margin=1.0, similarity_margin=1.0)], ids=["Tent", "EATA"])
def test_only_norms_move_and_the_model_comes_back(kind: str, make: type[Tent]) -> None:
    model = MODELS[kind][0]()
    next(model.parameters()).requires_grad_(False)
    model[0].eval()  # a part of the user's model may be in eval mode for good
    before = copy.deepcopy(model)
    adapted = make(model, lr=0.01)
    for seed in range(3):
        with torch.no_grad():
            assert not adapted(inputs(kind, seed)).requires_grad
    norms = norm_parameters(model)
    for (n, a), (_, b) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(a, b) == (n not in norms), n
    assert adapted.finish(keep=False) is model
    for (n, a), (_, b) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(a, b), n
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_a_step_of_tent_by_hand() -> None:
    """Train-mode BatchNorm without dropout, the mean entropy, one SGD step; predictions from before it."""
    model, x = conv(), inputs("conv")
    reference = copy.deepcopy(model)
    reference.train()
    reference[3].eval()
    logits = reference(x)
    p = F.softmax(logits, -1)
    norm = reference.get_submodule("1")
    grads = torch.autograd.grad(-(p * p.log()).sum(-1).mean(), list(norm.parameters()))
    adapted = Tent(model, optimizer=partial(torch.optim.SGD, lr=0.5))
    torch.testing.assert_close(adapted(x), logits, rtol=1e-5, atol=1e-6)
    for name, g in zip(("weight", "bias"), grads, strict=True):
        torch.testing.assert_close(getattr(model[1], name), getattr(norm, name) - 0.5 * g, rtol=1e-5, atol=1e-7)


def test_entropy_falls_and_episodes_start_anew() -> None:
    x = inputs("conv")
    adapted = Tent(conv(), lr=0.05)
    found = [float(conditional_entropy(adapted(x)).mean()) for _ in range(10)]
    assert found == sorted(found, reverse=True)
    episodic = Tent(conv(), lr=0.05, episodic=True)
    assert torch.equal(episodic(x), episodic(x))


def test_which_samples_teach_by_loops() -> None:
    g = torch.Generator().manual_seed(3)
    logits, mean = 3 * torch.randn(40, 5, generator=g), F.softmax(torch.randn(5, generator=g), -1)
    chosen, weight = reliable_and_new(logits, mean, 0.9, 0.6)
    for row, c, w in zip(logits, chosen, weight, strict=True):
        p = F.softmax(row, -1)
        e = float(-(p * p.log()).sum())
        cosine = float((p @ mean) / (p.norm() * mean.norm()))
        assert bool(c) == (e < 0.9 and abs(cosine) < 0.6)
        assert float(w) == pytest.approx(math.exp(0.9 - e), rel=1e-5)
    assert 0 < int(chosen.sum()) < 40
    everything, _ = reliable_and_new(logits, None, 100.0, 0.6)
    assert everything.all()


def test_the_mean_runs_over_the_selected() -> None:
    eata = EATA(conv(), entropy_margin=0.5, similarity_margin=1.0)
    logits = torch.tensor([[9.0, 0, 0, 0, 0], [0.0, 0, 0, 0, 0]])
    e = conditional_entropy(logits)[0]
    loss = eata.objective(logits)
    assert loss is not None
    assert float(loss) == pytest.approx(float(torch.exp(0.5 * math.log(5) - e) * e), rel=1e-6)
    assert (eata.used, eata.offered) == (1, 2)
    eata.finish()


def test_where_nothing_is_selected_nothing_moves() -> None:
    model, x = conv(), inputs("conv")
    before = {n: p.clone() for n, p in norm_parameters(model).items()}
    eata = EATA(model, fisher={n: torch.ones_like(p) for n, p in before.items()}, entropy_margin=1e-6)
    eata(x)
    assert eata.seen == 0
    assert all(torch.equal(p, before[n]) for n, p in norm_parameters(model).items())
    eata.finish()


def test_the_fisher_penalty_holds_weights_back() -> None:
    def moved(beta: float) -> float:
        model = conv()
        before = [p.clone() for p in norm_parameters(model).values()]
        fisher = {n: torch.ones_like(p) for n, p in norm_parameters(model).items()}
        eata = EATA(model, fisher, beta, 1.0, 1.0, optimizer=partial(torch.optim.SGD, lr=0.01))
        for seed in range(10):
            eata(inputs("conv", seed))
        after = norm_parameters(model).values()
        return sum(float((p - b).detach().square().sum()) for p, b in zip(after, before, strict=True))

    assert moved(20.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize("make", [Tent, partial(EATA, entropy_margin=1.0, similarity_margin=1.0)], ids=["Tent", "EATA"])
def test_resumes_bit_for_bit(make: type[Tent]) -> None:
    straight, first, second = make(conv()), make(conv()), make(conv())
    for seed in range(6):
        expected = straight(inputs("conv", seed))
    for seed in range(3):
        first(inputs("conv", seed))
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        found = second(inputs("conv", seed))
    assert torch.equal(found, expected)


def test_fisher_information_of_logistic_regression() -> None:
    """E over labels of the squared gradient is x_j^2 p_c (1 - p_c); drawing labels estimates it without bias."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    x = torch.randn(1, 3, dtype=torch.float64)
    p = F.softmax(model(x), -1)[0].detach()
    exact = (p * (1 - p))[:, None] * x.square()
    n = 20_000
    g = torch.Generator().manual_seed(1)
    found = fisher_diagonal(model, [x.expand(n, 3)], chunk=n, generator=g)["weight"]
    # one draw is x_j^2 times (1 - p_y)^2: its sd over labels bounds the error of the mean
    spread = x.square() * float(((1 - p).square().max() - (1 - p).square().min()) / 2)
    assert ((found - exact).abs() < 5 * spread / math.sqrt(n)).all()
    top = int(p.argmax())
    predicted = fisher_diagonal(model, [x], labels="predicted")["weight"]
    torch.testing.assert_close(predicted, (F.one_hot(torch.tensor(top), 2) - p).square()[:, None] * x.square())


def test_fisher_leaves_the_model_alone() -> None:
    model = conv().train()
    before = copy.deepcopy(model.state_dict())
    wanted = norm_parameters(model)
    found = fisher_diagonal(model, [inputs("conv")], wanted, labels="predicted", chunk=5)
    assert list(found) == list(wanted)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_diagonal(model, [])
    with pytest.raises(ValueError, match="labels must be"):
        fisher_diagonal(model, [inputs("conv")], labels="true")  # type: ignore[arg-type]


def test_bad_input_is_said() -> None:
    with pytest.raises(
        ValueError, match="Tent adapts the scales and shifts of normalisation layers, and the model has"
    ):
        Tent(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Tent(conv(), steps=0)
    with pytest.raises(ValueError, match=r"similarity_margin must be in \(0, 1\]"):
        EATA(conv(), similarity_margin=0.0)
    model = conv()
    with pytest.raises(ValueError, match=r"fisher lacks '1.bias'"):
        EATA(model, fisher={"1.weight": torch.ones(4)})
    assert model[1].running_mean is not None  # and the model was given back
    with pytest.raises(wp.NonFiniteError, match="the term 'Tent' is nan"):
        Tent(conv())(torch.full((4, 1, 8, 8), math.nan))
