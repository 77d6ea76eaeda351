"""Jacobian regularization against exact Jacobians, and on layers that need care with second derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.jacobian_reg import JacobianReg, jacobian_frobenius
from wellposed.tasks.regress import Regress

torch.set_num_threads(1)


def smooth_net(outputs: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, outputs)).double()


class Attention(nn.Module):
    """Fused attention, whose fast kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


class Recurrent(nn.Module):
    """A recurrent classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def data(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, *shape, generator=g, dtype=dtype), "y": torch.arange(12) % 3}


def leaf() -> Tensor:
    return data(6, dtype=torch.float64)["x"].requires_grad_()


def exact(net: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(net))(x).square().sum((1, 2))


def test_exact_norm() -> None:
    net, x = smooth_net(), leaf()
    assert torch.allclose(jacobian_frobenius(net(x), x), exact(net, x))
    linear = nn.Linear(6, 4).double()
    found = jacobian_frobenius(linear(x), x, create_graph=False)
    assert torch.allclose(found, linear.weight.square().sum().expand(12))
    assert not found.requires_grad


def test_projections_are_unbiased() -> None:
    """The mean of 4000 draws lies within four standard errors of the exact norm, for every sample."""
    net, x = smooth_net(), leaf()
    g = torch.Generator().manual_seed(0)
    z = net(x)
    draws = torch.stack([jacobian_frobenius(z, x, 1, g, create_graph=False) for _ in range(4000)])
    error = (draws.mean(0) - exact(net, x)).abs()
    assert (error < 4 * draws.std(0) / 4000**0.5).all()
    assert draws.std(0).min() > 0


def test_several_projections_average_single_ones() -> None:
    net, x = smooth_net(), leaf()
    seed = torch.Generator().manual_seed
    drawn = torch.randn(3, 12, 4, generator=seed(2), dtype=torch.float64)
    expected = torch.zeros(12, dtype=torch.float64)
    for v in F.normalize(drawn, dim=-1):
        expected += 4 / 3 * torch.autograd.grad(net(x), x, v)[0].square().sum(1)
    assert torch.allclose(jacobian_frobenius(net(x), x, 3, seed(2)), expected)


@pytest.mark.parametrize("n_proj", [-1, 1, 2])
def test_gradcheck_in_the_weights(n_proj: int) -> None:
    x = leaf()
    bias = torch.zeros(12, dtype=torch.float64)

    def norm(first: Tensor, last: Tensor) -> Tensor:
        z = torch.tanh(x @ first.T + bias) @ last.T
        return jacobian_frobenius(z, x, n_proj, torch.Generator().manual_seed(3))

    net = smooth_net()
    assert torch.autograd.gradcheck(norm, (net[0].weight, net[2].weight))


def test_single_output_is_exact_with_one_projection() -> None:
    net, x = smooth_net(1), leaf()
    assert torch.allclose(jacobian_frobenius(net(x)[:, 0], x, 1), exact(net, x))


def test_sequence_outputs_count_every_place() -> None:
    net = smooth_net()
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([exact(net, row).sum() for row in x])
    assert torch.allclose(jacobian_frobenius(net(x), x), expected)


def test_step_gradient_is_that_of_half_the_mean_norm() -> None:
    net, batch = smooth_net(), data(6, dtype=torch.float64)
    recipe = wp.Recipe(JacobianReg(n_proj=-1, strength=0.3)).attach(net, wp.Classify(classes=4))
    recipe.objective(net, batch).backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
    loss = F.cross_entropy(net(batch["x"]), batch["y"]) + 0.15 * exact(net, batch["x"]).mean()
    for a, b in zip(found, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert not batch["x"].requires_grad


def test_regression() -> None:
    net, batch = smooth_net(1), {**data(6, dtype=torch.float64), "y": torch.zeros(12, dtype=torch.float64)}
    recipe = wp.Recipe(JacobianReg(strength=2.0)).attach(net, Regress())
    recipe.objective(net, batch)
    assert recipe.update()["JacobianReg"].item() == pytest.approx(exact(net, batch["x"]).mean().item())


@pytest.mark.parametrize("kind", ["conv", "attention", "recurrent"])
def test_shrinks_the_jacobian(kind: str) -> None:
    make, shape = {"conv": (conv_net, (1, 8, 8)), "attention": (Attention, (5, 8)), "recurrent": (Recurrent, (5, 4))}[
        kind
    ]

    def after(*methods: wp.Method) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = make()
        batch = data(*shape)
        recipe = wp.Recipe(*methods).attach(net, wp.Classify(classes=3))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(30):
            recipe.step(batch, optimizer)
        norms = recipe.detach().eval()
        x = batch["x"].requires_grad_()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return jacobian_frobenius(norms(x), x, create_graph=False).mean().item()

    assert after(JacobianReg(strength=1.0)) < 0.5 * after()


def test_global_switches_are_put_back() -> None:
    was = torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()
    net = Recurrent()
    recipe = wp.Recipe(JacobianReg()).attach(net, wp.Classify(classes=3))
    recipe.step(data(5, 4), torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(RuntimeError):
        recipe.step(data(5, 3), torch.optim.SGD(net.parameters(), lr=0.1))
    assert (torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()) == was


def test_passes() -> None:
    exact_norm = JacobianReg(n_proj=-1)
    wp.Recipe(exact_norm).attach(smooth_net(), wp.Classify(classes=4))
    assert (JacobianReg().passes(), JacobianReg(n_proj=3).passes(), exact_norm.passes()) == (3.0, 5.0, 6.0)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="n_proj must be at least 1, or -1 for the exact norm, got 0"):
        JacobianReg(n_proj=0)
    x = leaf()
    with pytest.raises(ValueError, match="n_proj must be at least 1"):
        jacobian_frobenius(x * 2, x, -3)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    recipe = wp.Recipe(JacobianReg()).attach(net, wp.Classify(classes=3))
    with pytest.raises(TypeError, match=r"JacobianReg moves the input.*torch.int64"):
        recipe.step(
            {"x": torch.zeros(12, 5, dtype=torch.long), "y": torch.arange(12) % 3}, torch.optim.SGD(net.parameters())
        )
