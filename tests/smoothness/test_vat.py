"""VAT against the exact Fisher information of the input, and on labels it does not use."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.smoothness.vat import VAT, conditional_entropy, vat_loss, virtual_adversarial_perturbation

torch.set_num_threads(1)


def smooth_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def conv_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 3)
        )


class Encoder(nn.Module):
    """A transformer over real-valued sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(12, *shape, generator=g, dtype=dtype), "y": torch.arange(12) % 3}


def fisher(net: nn.Module, x: Tensor) -> Tensor:
    """J' (diag p - p p') J of every sample."""
    jacobian = torch.func.vmap(torch.func.jacrev(net))(x)
    p = F.softmax(net(x), -1)
    return torch.einsum("bci,bcd,bdj->bij", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None], jacobian)


def kl(net: nn.Module, x: Tensor, r: Tensor) -> Tensor:
    p, q = F.softmax(net(x), -1), F.softmax(net(x + r), -1)
    return (p * (p / q).log()).sum(-1)


def test_perturbation_is_the_fisher_informations_top_eigenvector() -> None:
    net, x = smooth_net(), batch(6, dtype=torch.float64)["x"]
    r = virtual_adversarial_perturbation(net, x, net(x), eps=0.3, xi=1e-4, n_power=30)
    values, vectors = torch.linalg.eigh(fisher(net, x))
    separated = values[:, -2] < 0.7 * values[:, -1]
    assert separated.sum() >= 8
    assert (F.cosine_similarity(r, vectors[..., -1]).abs()[separated] > 0.999).all()
    assert torch.allclose(r.norm(dim=1), torch.full((12,), 0.3, dtype=torch.float64))


def test_one_iteration_moves_the_prediction_more_than_chance() -> None:
    net, x = smooth_net(), batch(6, dtype=torch.float64)["x"]
    r = virtual_adversarial_perturbation(net, x, net(x), 0.3, generator=torch.Generator().manual_seed(0))
    chance = torch.stack(
        [kl(net, x, 0.3 * F.normalize(torch.randn(x.shape, dtype=x.dtype), dim=1)).mean() for _ in range(50)]
    )
    assert kl(net, x, r).mean() > chance.max()


def test_loss_is_the_divergence_there() -> None:
    net, x = smooth_net(), batch(6, dtype=torch.float64)["x"]
    seed = torch.Generator().manual_seed
    r = virtual_adversarial_perturbation(net, x, net(x), 0.5, n_power=2, generator=seed(5))
    found = vat_loss(net, x, eps=0.5, n_power=2, generator=seed(5))
    assert torch.allclose(found, kl(net, x, r))
    assert torch.equal(found, vat_loss(net, x, net(x), eps=0.5, n_power=2, generator=seed(5)))
    lam = torch.linalg.eigvalsh(fisher(net, x))[:, -1]
    small = vat_loss(net, x, eps=1e-3, xi=1e-3, n_power=60) / (0.5 * 1e-6 * lam)  # KL is eps^2 lambda_max / 2
    assert torch.allclose(small, torch.ones_like(small), atol=0.02)


def test_gradient_flows_through_the_moved_prediction_only() -> None:
    net, x = smooth_net(), batch(6, dtype=torch.float64)["x"]
    r = virtual_adversarial_perturbation(net, x, net(x), 0.5, generator=torch.Generator().manual_seed(5))
    assert not r.requires_grad
    constant = F.softmax(net(x), -1).detach()
    expected = torch.autograd.grad(-(constant * F.log_softmax(net(x + r), -1)).sum(), list(net.parameters()))
    loss = vat_loss(net, x, net(x), eps=0.5, generator=torch.Generator().manual_seed(5)).sum()
    for a, b in zip(torch.autograd.grad(loss, list(net.parameters())), expected, strict=True):
        assert torch.allclose(a, b)


def test_conditional_entropy() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    expected = [-sum(p * math.log(p) for p in row) for row in F.softmax(logits, -1).tolist()]
    assert conditional_entropy(logits).tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(conditional_entropy, logits)


def first_terms(net: nn.Module, data: dict[str, Tensor], method: VAT, lr: float = 0.0) -> dict[str, Tensor]:
    recipe = wp.Recipe(method, seed=3).attach(net, wp.Classify(classes=3))
    return recipe.step(data, torch.optim.SGD(net.parameters(), lr=lr))


def test_term_does_not_know_the_labels() -> None:
    data = batch(1, 8, 8)
    other = {**data, "y": data["y"].roll(1)}
    a, b = first_terms(conv_net(), data, VAT()), first_terms(conv_net(), other, VAT())
    assert torch.equal(a["VAT"], b["VAT"])
    assert a["task"] != b["task"]


def test_dropout_and_batch_statistics_are_those_of_the_clean_pass() -> None:
    """With eps 0 the extra pass must reproduce the clean one exactly, so the divergence is 0."""
    net = conv_net()
    assert first_terms(net, batch(1, 8, 8), VAT(eps=0.0))["VAT"].abs() < 1e-7
    assert int(net[1].num_batches_tracked) == 1


def test_only_the_second_pass_reaches_the_weights() -> None:
    """The gradient of the whole step equals cross-entropy's plus the hand-made one."""
    net, data = smooth_net(), batch(6, dtype=torch.float64)
    recipe = wp.Recipe(VAT(eps=0.5), seed=3).attach(net, wp.Classify(classes=4))
    recipe.objective(net, data).backward()
    found = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    step = recipe._begin(None, None)
    loss = F.cross_entropy(net(data["x"]), data["y"])
    loss = loss + vat_loss(net, data["x"], eps=0.5, generator=step.rng(recipe.listed[0])).mean()
    for a, b in zip(found, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_entropy_is_added() -> None:
    net, data = smooth_net(), batch(6, dtype=torch.float64)
    plain = first_terms(net, data, VAT())["VAT"]
    more = first_terms(smooth_net(), data, VAT(entropy=0.5))["VAT"]
    assert torch.allclose(more - plain, 0.5 * conditional_entropy(net(data["x"])).mean())


def test_unlabelled_rows_help() -> None:
    """Two moons, 8 of 300 labels known: y = -100 leaves a row out of cross-entropy but not out of VAT."""

    def accuracy(seed: int, *methods: wp.Method) -> float:
        g = torch.Generator().manual_seed(seed)
        truth = torch.arange(300) % 2
        angle = math.pi * torch.rand(300, generator=g)
        upper = torch.stack([angle.cos(), angle.sin()], -1)
        x = torch.where(truth[:, None] == 0, upper, torch.tensor([1.0, 0.5]) - upper)
        x = x + 0.1 * torch.randn(300, 2, generator=g)
        y = torch.where(torch.arange(300) < 8, truth, -100)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        recipe = wp.Recipe(*methods).attach(net, wp.Classify(classes=2))
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(300):
            recipe.step({"x": x, "y": y}, optimizer)
        return (net(x).argmax(-1) == truth).float().mean().item()

    gains = [accuracy(seed, VAT(eps=0.3)) - accuracy(seed) for seed in range(3)]
    assert min(gains) >= 0
    assert sum(gains) / 3 > 0.05


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    net, data = (conv_net(), batch(1, 8, 8)) if kind == "conv" else (Encoder(), batch(5, 8))
    recipe = wp.Recipe(VAT(eps=0.5)).attach(net, wp.Classify(classes=3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = [recipe.step(data, optimizer)["task"].item() for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_prediction_that_ignores_its_input_costs_nothing() -> None:
    net = nn.Linear(6, 3)
    nn.init.zeros_(net.weight)
    r = virtual_adversarial_perturbation(net, batch(6)["x"], net(batch(6)["x"]), 1.0)
    assert torch.equal(r, torch.zeros(12, 6))
    assert first_terms(net, batch(6), VAT())["VAT"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    net = smooth_net().to(dtype)
    data = batch(6, dtype=torch.float64)
    wide = smooth_net()
    r = virtual_adversarial_perturbation(net, data["x"].to(dtype), net(data["x"].to(dtype)), 1.0, n_power=3)
    exact = virtual_adversarial_perturbation(wide, data["x"], wide(data["x"]), 1.0, n_power=3)
    assert r.dtype == dtype
    assert kl(wide, data["x"], r.double()).mean() > 0.8 * kl(wide, data["x"], exact).mean()


def test_passes() -> None:
    calls = []
    net = smooth_net()
    net.register_forward_hook(lambda *_: calls.append(1))
    first_terms(net, batch(6, dtype=torch.float64), VAT(n_power=2))
    assert len(calls) == 4  # clean, two iterations, moved
    assert VAT(n_power=2).passes() == pytest.approx(2 + 4 / 3)


def test_bad_input() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    data = {"x": torch.zeros(12, 5, dtype=torch.long), "y": torch.arange(12) % 3}
    with pytest.raises(TypeError, match=r"VAT moves the input.*torch.int64.*embeddings"):
        first_terms(net, data, VAT())
    with pytest.raises(ValueError, match="xi must be above 0"):
        VAT(xi=0.0)
    with pytest.raises(ValueError, match="n_power must be at least 1"):
        VAT(n_power=0)


def test_conditional_entropy_of_an_excluded_class() -> None:
    logits = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    found = conditional_entropy(logits)
    found.backward()
    assert found.item() == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-15
