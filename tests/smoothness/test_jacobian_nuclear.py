"""The penalty against full Jacobians and their singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.jacobian_nuclear import JacobianNuclear, jacobian_nuclear_norm, jacobian_nuclear_penalty


def nets() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    decoder = nn.Sequential(nn.Tanh(), nn.Linear(5, 3)).double()
    return encoder, decoder, torch.randn(6, 4, dtype=torch.float64)


def test_exact_value_by_full_jacobians() -> None:
    encoder, decoder, x = nets()
    found = jacobian_nuclear_penalty(encoder, decoder, x, exact=True)
    for i in range(6):
        first = torch.func.jacrev(encoder)(x[i])
        second = torch.func.jacrev(decoder)(encoder(x[i]).detach())
        assert found[i].item() == pytest.approx(0.5 * (first.square().sum() + second.square().sum()).item(), rel=1e-12)


def test_nuclear_norm_by_svd_of_each_jacobian() -> None:
    encoder, decoder, x = nets()
    both = nn.Sequential(encoder, decoder)
    expected = [torch.linalg.svdvals(torch.func.jacrev(both)(row)).sum().item() for row in x]
    assert jacobian_nuclear_norm(both, x).tolist() == pytest.approx(expected, rel=1e-12)
    linear = nn.Linear(4, 6).double()
    images = nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, (2, 3)))
    expected_of_linear = torch.linalg.svdvals(linear.weight).sum().item()
    assert jacobian_nuclear_norm(images, x.view(6, 2, 2)).tolist() == pytest.approx([expected_of_linear] * 6, rel=1e-12)


def test_never_below_the_nuclear_norm() -> None:
    encoder, decoder, x = nets()
    bound = jacobian_nuclear_penalty(encoder, decoder, x, exact=True).detach()
    assert (bound >= jacobian_nuclear_norm(nn.Sequential(encoder, decoder), x)).all()


def test_balanced_factors_attain_it() -> None:
    """B = U S^(1/2), A = S^(1/2) V': the theorem's minimum."""
    m = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    a, b = s.sqrt().diag() @ v, u @ s.sqrt().diag()
    found = jacobian_nuclear_penalty(lambda z: z @ a.T, lambda z: z @ b.T, torch.zeros(1, 4).double(), exact=True)
    assert found.item() == pytest.approx(s.sum().item(), rel=1e-12)


def test_noise_estimates_the_exact_value() -> None:
    encoder, decoder, x = nets()
    g = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [jacobian_nuclear_penalty(encoder, decoder, x, 0.01, 20, generator=g).detach() for _ in range(50)]
    )
    exact = jacobian_nuclear_penalty(encoder, decoder, x, exact=True).detach()
    assert ((drawn.mean(0) - exact).abs() < 4.5 * drawn.std(0) / 50**0.5 + 1e-3 * exact).all()  # bias: sigma^2


@pytest.mark.parametrize("exact", [True, False])
def test_gradient_reaches_both_factors_through_the_value_between(exact: bool) -> None:
    _, _, x = nets()
    a = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(0)
        return jacobian_nuclear_penalty(
            lambda z: (z @ a.T).tanh(), lambda h: (h @ b.T).tanh(), x, 0.3, exact=exact, generator=g
        )

    assert torch.autograd.gradcheck(penalty, (a, b))


def test_method_on_linear_layers() -> None:
    """Mean over draws: half the squared norms of both weights, whatever lies on the other side of the cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    recipe = wp.Recipe(JacobianNuclear(layer="0", sigma=0.5, strength=1.0)).attach(model, wp.Classify())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = {"x": torch.randn(50, 4).double(), "y": torch.arange(50) % 3}
    drawn = torch.stack([recipe.step(batch, optimizer)["JacobianNuclear"] for _ in range(100)])
    exact = 0.5 * sum(p.square().sum().item() for p in model.parameters() if p.ndim == 2)
    assert abs(drawn.mean().item() - exact) < 4.5 * drawn.std().item() / 10
    assert drawn.std() > 0


def test_conv_net_and_a_layer_that_returns_a_tuple() -> None:
    class Former(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].flatten(1))

    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    for model, layer, shape in ((conv, "2", (1, 8, 8)), (Former(), "attention", (5, 8))):
        x = torch.randn(12, *shape)
        recipe = wp.Recipe(JacobianNuclear(layer=layer, strength=0.003)).attach(model, wp.Classify())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        terms = [recipe.step({"x": x, "y": torch.arange(12) % 3}, optimizer) for _ in range(40)]
        assert terms[-1]["task"] < 0.6 * terms[0]["task"]
        assert all(not m._forward_hooks for m in recipe.detach().modules())
    assert conv[1].num_batches_tracked == 40


def test_lowers_the_nuclear_norm() -> None:
    norms = []
    for strength in (0.0, 0.1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        x = torch.randn(24, 6).double()
        recipe = wp.Recipe(JacobianNuclear(layer="1", strength=strength)).attach(model, wp.Classify())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
        for _ in range(100):
            recipe.step({"x": x, "y": torch.arange(24) % 3}, optimizer)
        norms.append(jacobian_nuclear_norm(model, x).mean().item())
    assert norms[1] < 0.7 * norms[0]


def test_refusals() -> None:
    with pytest.raises(wp.RecipeError, match="JacobianNuclear taps 'body', which the model does not have"):
        wp.Recipe(JacobianNuclear(layer="body")).attach(nn.Sequential(nn.Linear(2, 2)), wp.Classify())
    shared = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 3), shared)
    recipe = wp.Recipe(JacobianNuclear(layer="1")).attach(model, wp.Classify())
    with pytest.raises(ValueError, match="needs a layer that runs once a pass, and '1' ran 2 times"):
        recipe.step({"x": torch.randn(6, 4), "y": torch.arange(6) % 3}, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="sigma must be above 0"):
        JacobianNuclear(layer="1", sigma=0.0)


def test_a_model_of_one_number_a_sample() -> None:
    """As regressors give it: outputs (B,)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    recipe = wp.Recipe(JacobianNuclear(layer="0", strength=1.0)).attach(model, wp.Regress())
    terms = recipe.step({"x": torch.randn(8, 4), "y": torch.randn(8)}, torch.optim.SGD(model.parameters(), lr=0.1))
    assert terms["JacobianNuclear"] > 0
    assert jacobian_nuclear_norm(model, torch.randn(5, 4)).shape == (5,)
