"""Omega against the recurrence written out with every state a node of the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers.gradient_clipping import GradientClipping
from wellposed.optimizers.vanishing_gradients import (
    VanishingGradientPenalty,
    gradient_profile,
    hidden_gradients,
    spectral_radius,
    vanishing_gradient_penalty,
)


class Net(nn.Module):
    """Reads (B, T, 4); answers from the last state, or from all states where ``dense``."""

    def __init__(self, nonlinearity: str = "tanh", batch_first: bool = True, dense: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.RNN(4, 8, nonlinearity=nonlinearity, batch_first=batch_first)
        self.head, self.dense = nn.Linear(8, 3), dense
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        pooled = states.pow(2).mean(1 if self.rnn.batch_first else 0) if self.dense else 0.0
        return self.head(pooled + last[0])


def sequences(rows: int = 6, length: int = 7) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(rows, length, 4, generator=g, dtype=torch.float64), "y": torch.arange(rows) % 3}


def unrolled(net: Net, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The hidden states as nodes, and the loss of each sample, by a loop over time."""
    act = torch.tanh if net.rnn.nonlinearity == "tanh" else torch.relu
    r, h, states = net.rnn, torch.zeros(len(batch["x"]), 8, dtype=torch.float64), []
    for x in batch["x"].unbind(1):
        h = act(x @ r.weight_ih_l0.T + r.bias_ih_l0 + h @ r.weight_hh_l0.T + r.bias_hh_l0)
        states.append(h)
    pooled = torch.stack(states).pow(2).mean(0) if net.dense else 0.0
    return states, F.cross_entropy(net.head(pooled + h), batch["y"], reduction="none")


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_the_unrolled_net(nonlinearity: str, dense: bool, squared: bool, batch_first: bool) -> None:
    net, batch = Net(nonlinearity, batch_first, dense), sequences()
    states, rows = unrolled(net, batch)
    assert torch.allclose(rows, F.cross_entropy(net(batch["x"]), batch["y"], reduction="none"), rtol=0, atol=1e-14)
    signals = torch.autograd.grad(rows.sum(), states, retain_graph=True)
    w, omegas = net.rnn.weight_hh_l0, []
    for b in range(len(rows)):
        terms = []
        for k in range(len(states) - 1):
            h, d = states[k + 1][b].detach(), signals[k + 1][b]
            slope = 1 - h**2 if nonlinearity == "tanh" else (h > 0).double()
            if float(d.norm()) ** 2 > 1e-20:
                ratio = (w.T @ (slope * d)).norm() / d.norm()
                terms.append(((ratio**2 if squared else ratio) - 1) ** 2)
        omegas.append(torch.stack(terms).mean())
    expected = torch.stack(omegas).mean()
    (slope_of_w,) = torch.autograd.grad(expected, w)

    recipe = wp.Recipe(VanishingGradientPenalty(layer="rnn", squared=squared)).attach(net, wp.Classify())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    terms = recipe.step(batch, optimizer)
    assert float(terms["VanishingGradientPenalty"]) == pytest.approx(2 * expected.item(), rel=1e-12)
    with_it = {n: p.grad.clone() for n, p in net.named_parameters()}
    recipe.detach()
    wp.Recipe().attach(net, wp.Classify()).step(batch, optimizer)
    for n, p in net.named_parameters():
        change = with_it[n] - p.grad
        expected_change = 2 * slope_of_w if n == "rnn.weight_hh_l0" else torch.zeros_like(change)
        assert torch.allclose(change, expected_change, rtol=0, atol=1e-12), n


def test_orthogonal_weights_and_linear_units_cost_nothing() -> None:
    weight = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    slope = torch.ones(6, 3, 5, dtype=torch.float64)
    gradients = hidden_gradients(torch.randn(6, 3, 5, dtype=torch.float64), slope, weight)
    assert vanishing_gradient_penalty(gradients, slope, weight).abs().max() < 1e-28
    assert torch.allclose(  # scaling W by c: (c^2 - 1)^2
        vanishing_gradient_penalty(gradients, slope, 1.2 * weight), torch.full((3,), 0.44**2, dtype=torch.float64)
    )


@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck_by_the_weights(squared: bool) -> None:
    gradients, slope = torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(4, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w: vanishing_gradient_penalty(gradients, slope, w, squared),
        torch.randn(3, 3, dtype=torch.float64, requires_grad=True),
    )


def test_vanished_signals_do_not_count() -> None:
    gradients, slope = torch.ones(3, 2, 4), torch.ones(3, 2, 4)
    gradients[1:, 0] = 0
    weight = (2 * torch.eye(4)).requires_grad_()
    value = vanishing_gradient_penalty(gradients, slope, weight, squared=False)
    assert torch.equal(value, torch.tensor([0.0, 1.0]))
    value.sum().backward()
    assert torch.isfinite(weight.grad).all()
    dead = vanishing_gradient_penalty(gradients, torch.zeros(3, 2, 4), weight, squared=False)
    (slope_of_w,) = torch.autograd.grad(dead.sum(), weight)
    assert torch.isfinite(slope_of_w).all()  # no unit passes anything on: ratio 0, not NaN


def test_profile_and_radius() -> None:
    net, batch = Net(dense=True), sequences()
    states, rows = unrolled(net, batch)
    signals = torch.autograd.grad(rows.sum(), states)
    output, last = net.rnn(batch["x"])
    loss = F.cross_entropy(net.head(output.pow(2).mean(1) + last[0]), batch["y"], reduction="sum")
    expected = torch.stack([d.norm() for d in signals])
    assert torch.allclose(gradient_profile(net.rnn, output, last, loss), expected, rtol=1e-12)
    assert spectral_radius(torch.tensor([[0.0, 2.0], [-2.0, 0.0]])) == pytest.approx(2.0)


def test_pulls_an_exploding_recurrence_back() -> None:
    def radius(*methods: wp.Method) -> float:
        net, batch = Net(), sequences(12, 10)
        with torch.no_grad():
            net.rnn.weight_hh_l0.mul_(2.0 / spectral_radius(net.rnn.weight_hh_l0))
        recipe = wp.Recipe(GradientClipping(max_norm=1.0), *methods).attach(net, wp.Classify())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(60)]
        assert losses[-1] < losses[0]
        return float(spectral_radius(net.rnn.weight_hh_l0.detach()))

    assert radius(VanishingGradientPenalty(layer="rnn")) < radius() - 0.05


def test_bad_models_are_refused() -> None:
    for rnn in (nn.LSTM(4, 8), nn.RNN(4, 8, num_layers=2), nn.RNN(4, 8, bidirectional=True)):
        model = nn.ModuleDict({"rnn": rnn})
        with pytest.raises(wp.RecipeError, match="one layer and one direction; 'rnn' is"):
            wp.Recipe(VanishingGradientPenalty(layer="rnn")).attach(model, wp.Classify())
    with pytest.raises(wp.RecipeError, match="taps 'cell', which the model does not have"):
        wp.Recipe(VanishingGradientPenalty(layer="cell")).attach(Net(), wp.Classify())

    class Packed(Net):
        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((len(x),), x.shape[1])
            return self.head(self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1][0])

    net = Packed()
    recipe = wp.Recipe(VanishingGradientPenalty(layer="rnn")).attach(net, wp.Classify())
    with pytest.raises(ValueError, match="padded sequences"):
        recipe.step(sequences(), torch.optim.SGD(net.parameters(), lr=0.1))
