"""UPGrad: weights against a quadratic-programming solver, the paper's properties, and the training step."""

from __future__ import annotations

import pytest
import quadprog
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.optimizers import upgrad as module
from wellposed.optimizers.upgrad import (
    UPGrad,
    dual_proj_weights,
    gramian,
    jacobian_backward,
    mean_weights,
    mgda_weights,
    upgrad,
    upgrad_weights,
)


def draws(count: int, m: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(count, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_quadprog(gram: Tensor, lower: Tensor) -> Tensor:
    """argmin of v' G v over v >= lower."""
    m = len(gram)
    eye = torch.eye(m, dtype=torch.float64)
    g = gram / gram.trace() + 1e-4 * eye
    return torch.from_numpy(
        quadprog.solve_qp(g.numpy(), torch.zeros(m).double().numpy(), eye.numpy(), lower.numpy())[0]
    )


@pytest.mark.parametrize(("m", "d"), [(1, 3), (2, 2), (5, 20), (12, 4), (30, 10), (40, 200)])
def test_weights_equal_quadprog(m: int, d: int) -> None:
    for j in draws(6, m, d):
        j = j + 0.3 * j[0]  # correlated rows
        gram = j @ j.T
        rows = [by_quadprog(gram, e) for e in torch.eye(m, dtype=torch.float64)]
        assert torch.allclose(upgrad_weights(gram), torch.stack(rows).mean(0), rtol=1e-7, atol=1e-9)
        mean = torch.full((m,), 1 / m, dtype=torch.float64)
        assert torch.allclose(dual_proj_weights(gram), by_quadprog(gram, mean), rtol=1e-7, atol=1e-9)


def test_preference_weighs_the_projections() -> None:
    j = draws(1, 4, 6)[0]
    gram, preference = j @ j.T, torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    expected = sum(p * by_quadprog(gram, e) for p, e in zip(preference, torch.eye(4, dtype=torch.float64), strict=True))
    assert torch.allclose(upgrad_weights(gram, preference), expected, rtol=1e-7, atol=1e-9)


def test_two_conflicting_gradients_closed_form() -> None:
    a, b = torch.tensor([1.0, 0.2, 0.0]).double(), torch.tensor([-0.5, 1.0, 0.3]).double()
    assert a @ b < 0
    expected = ((a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)) / 2
    found = upgrad(torch.stack([a, b]), lambda g: upgrad_weights(g, reg_eps=1e-12))
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    together = torch.stack([a, a + b])
    assert torch.allclose(upgrad(together), together.mean(0), rtol=0, atol=1e-12)  # no conflict: the mean


def test_conflicts_with_no_row_where_the_mean_does() -> None:
    conflicts = 0
    for j in draws(100, 5, 5):
        trace = j.square().sum()
        for reg_eps in (1e-4, 1e-10):
            w = upgrad_weights(j @ j.T, reg_eps=reg_eps)
            assert (j @ (w @ j) >= -trace * (reg_eps * w + 1e-10)).all()  # (G + reg tr(G) I) w >= 0
        conflicts += bool((j @ upgrad(j, mean_weights)).min() < 0)
    assert conflicts > 30


def test_is_linear_in_the_scale_of_the_rows() -> None:
    def exact(gram: Tensor) -> Tensor:
        return upgrad_weights(gram, reg_eps=1e-13)

    c, e = torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    for j in draws(20, 5, 20):
        assert torch.allclose(upgrad((c + e) * j, exact), upgrad(c * j, exact) + upgrad(e * j, exact), atol=1e-8)


def test_rows_that_span_every_direction_stop_it() -> None:
    """A Pareto-stationary point: only zero conflicts with none of 30 gradients in four dimensions."""
    j = draws(1, 30, 4)[0]
    assert upgrad(j, lambda g: upgrad_weights(g, reg_eps=1e-9)).norm() < 1e-6 * j.norm()


def test_tiny_gradients_are_averaged() -> None:
    j = 1e-4 * draws(1, 3, 3)[0]
    assert torch.equal(upgrad_weights(j @ j.T), mean_weights(j @ j.T))


def test_mgda_is_the_shortest_vector_of_the_hull() -> None:
    for j in draws(10, 5, 8):
        j = j + 0.4
        w = mgda_weights(j @ j.T)
        assert w.min() >= 0
        assert w.sum() == pytest.approx(1)
        shortest = w @ j
        assert (j @ shortest).min() >= shortest.square().sum() - 1e-4  # optimality over the hull's corners


def test_results_keep_device_and_dtype() -> None:
    j = draws(1, 3, 4)[0].float()
    assert upgrad_weights(j @ j.T).dtype == torch.float32
    assert gramian([j.bfloat16()]).dtype == torch.float32


def test_jacobian_backward_of_two_tasks() -> None:
    torch.manual_seed(0)
    body, heads = nn.Linear(4, 6).double(), [nn.Linear(6, 1).double() for _ in range(2)]
    x, unused = torch.randn(8, 4).double(), nn.Parameter(torch.zeros(2).double())
    params = list(body.parameters())

    def losses() -> list[Tensor]:
        z = body(x).tanh()
        return [heads[0](z).square().mean(), (heads[1](z) - 1).square().mean()]

    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses()[i], params)]) for i in range(2)]
    expected = upgrad(torch.stack(rows))
    for times in (1, 2):  # it adds, as backward does
        weights = jacobian_backward(losses(), [*params, unused])
        found = torch.cat([p.grad.flatten() for p in params])
        assert torch.allclose(found, times * expected, rtol=0, atol=1e-13)
    assert weights.shape == (2,)
    assert unused.grad is None
    jacobian_backward(losses(), params, mgda_weights)
    assert not torch.allclose(torch.cat([p.grad.flatten() for p in params]), 3 * expected)


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    ).double()


def images() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(10, 1, 8, 8, generator=g, dtype=torch.float64), "y": torch.arange(10) % 3}


@pytest.mark.parametrize("groups", [None, 3, 20])
def test_step_equals_a_loop_over_rows(groups: int | None) -> None:
    model, batch = conv_net(), images()
    params = list(model.parameters())
    rows = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    parts = list(rows[:, None]) if groups != 3 else [rows[:4], rows[4:7], rows[7:]]
    sizes = torch.tensor([len(p) / 10 for p in parts], dtype=torch.float64)
    grads = [torch.autograd.grad(p.mean(), params, retain_graph=True) for p in parts]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
    expected = upgrad(jacobian, lambda gram: upgrad_weights(gram, sizes))

    ours = conv_net()
    before = torch.cat([p.detach().flatten() for p in ours.parameters()])
    recipe = wp.Recipe(UPGrad(groups=groups)).attach(ours, wp.Classify())
    terms = recipe.step(batch, torch.optim.SGD(ours.parameters(), lr=1.0))
    moved = before - torch.cat([p.detach().flatten() for p in ours.parameters()])
    assert torch.allclose(moved, expected, rtol=0, atol=1e-12)
    assert float(terms["task"]) == pytest.approx(rows.mean().item())


def chain(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 3, bias=False)
        ).double()
    if kind == "tokens":  # the layers see the rows of the image, eight positions for each sample
        return nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(40, 3)).double()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=(1, 0), dilation=(1, 2)), nn.GELU(), nn.Sequential(nn.MaxPool2d(2)),
        nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(10, 3),
    ).double()  # fmt: skip


def moved_by(model: nn.Module, method: UPGrad, *others: wp.Method, steps: int = 2) -> Tensor:
    recipe = wp.Recipe(method, *others).attach(model, wp.Classify(classes=3))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        recipe.step(images(), optimizer)
    recipe.detach()
    assert not any(m._forward_hooks for m in model.modules())
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("frozen", [None, 0, 2])
@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("kind", ["mlp", "tokens", "conv"])
def test_one_backward_pass_gives_the_gramian_of_the_jacobian(
    kind: str, groups: int | None, frozen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> nn.Module:
        net = chain(kind)
        if frozen is not None:
            list(net.parameters())[frozen].requires_grad_(False)
        return net

    with monkeypatch.context() as m:
        m.setattr(module, "_jacobian", None)  # calling it would fail
        found = moved_by(model(), UPGrad(groups=groups))
    monkeypatch.setattr(module.Rowwise, "gramian", lambda self, rows: None)
    assert torch.allclose(found, moved_by(model(), UPGrad(groups=groups)), rtol=0, atol=1e-10)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Double(wp.Method):
    def penalty(self, step: wp.Step) -> Tensor:
        return step.task.loss(step.forward(), step.batch)


@pytest.mark.parametrize("case", ["twice", "tied", "coupled", "parametrised", "penalty", "hooked", "norm"])
def test_what_one_backward_pass_cannot_give_goes_by_the_jacobian(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        a, b = nn.Linear(64, 64), nn.Linear(64, 64)
        if case == "tied":
            b.weight = a.weight
        middle = {"twice": a, "coupled": Centred(64, 64), "norm": nn.BatchNorm1d(64)}.get(case, b)
        net = nn.Sequential(nn.Flatten(), a, nn.Tanh(), middle, nn.Tanh(), nn.Linear(64, 3)).double()
        if case == "parametrised":
            nn.utils.parametrizations.weight_norm(a)
        if case == "hooked":
            a.register_forward_hook(lambda module, args, out: out - out.mean(0))
        return net

    others = [Double()] if case == "penalty" else []
    calls = []
    jacobian = module._jacobian
    monkeypatch.setattr(module, "_jacobian", lambda *args, **kwargs: calls.append(1) or jacobian(*args, **kwargs))
    net = model()
    recipe = wp.Recipe(UPGrad(), *others).attach(net, wp.Classify(classes=3))
    recipe.step(images(), torch.optim.SGD(net.parameters(), lr=0.1))
    assert calls


def test_samples_without_weight_do_not_count() -> None:
    class Masked(wp.Classify):
        def weight(self, batch: dict[str, Tensor]) -> Tensor:
            return (batch["y"] != 2).double()

    def updated(batch: dict[str, Tensor], task: wp.Task) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(6, 3).double()
        wp.Recipe(UPGrad()).attach(model, task).step(batch, torch.optim.SGD(model.parameters(), lr=1.0))
        return model.weight.detach()

    batch = {"x": torch.randn(9, 6, dtype=torch.float64), "y": torch.arange(9) % 3}
    kept = {k: v[batch["y"] != 2] for k, v in batch.items()}
    assert torch.allclose(updated(batch, Masked()), updated(kept, wp.Classify()), rtol=0, atol=1e-10)


def test_trains_a_transformer_and_no_example_is_given_up() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
    model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(40, 3))
    batch = {"x": torch.randint(7, (8, 5)), "y": torch.arange(8) % 3}
    recipe = wp.Recipe(UPGrad()).attach(model, wp.Classify())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="groups must be at least 1"):
        UPGrad(groups=0)
    with pytest.raises(ValueError, match="at least one parameter"):
        gramian([])
