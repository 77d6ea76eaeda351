"""GaussianNoise, Dropout and MaskSub."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation._dropping import dropped
from wellposed.augmentation.dropout import Dropout
from wellposed.augmentation.gaussian_noise import GaussianNoise
from wellposed.augmentation.masksub import MaskSub, distillation_loss, random_mask
from wellposed.tasks.next_token import NextToken


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 4)
    )


class Encoder(nn.Module):
    """A small transformer classifier of token embeddings (B, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, activation=nn.GELU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def rows(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.randn(16, *shape, generator=generator(1)), "y": torch.arange(16) % 4}


def attach(model: nn.Module, *methods: wp.Method, lr: float = 0.05) -> tuple[wp.Recipe, torch.optim.Optimizer]:
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(classes=4))
    return recipe, torch.optim.SGD(model.parameters(), lr=lr)


class Recorder(wp.Method):
    """Keeps the outputs of a submodule of every main pass, and may make an extra pass."""

    layer: str = "1"
    extra: bool = False

    def setup(self, model: nn.Module, task: wp.Task) -> None:
        self.taps, self.seen = (self.layer,), []
        self.repeated: list[Tensor] = []

    def penalty(self, step: wp.Step) -> None:
        self.seen.append(step.taps[self.layer].detach())
        if self.extra:
            self.repeated.append(step.forward()["logits"].detach() - step.out["logits"].detach())


# ---- input noise
def test_noise_has_the_asked_spread_and_repeats() -> None:
    x = torch.zeros(400, 50)
    model = nn.Linear(50, 4)
    method = GaussianNoise(std=0.3)
    recipe, _ = attach(model, method)
    first = recipe._begin(None, None)
    noisy = method.batch({"x": x}, first)["x"]
    n = x.numel()
    assert abs(noisy.mean()) < 4 * 0.3 / math.sqrt(n)
    assert abs(noisy.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * n)
    assert torch.equal(noisy, method.batch({"x": x}, first)["x"])
    first.micro = 1
    assert not torch.equal(noisy, method.batch({"x": x}, first)["x"])


def test_noise_on_a_linear_model_is_tikhonov() -> None:
    """Bishop: the expected squared error on noisy inputs is the plain one plus std^2 ||w||^2, here in closed form."""
    g, std, draws = generator(), 0.5, 3000
    x, w = torch.randn(4, 5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    y = torch.randn(4, generator=g, dtype=torch.float64)
    method = GaussianNoise(std=std)
    recipe, _ = attach(nn.Linear(5, 4), method)
    step = recipe._begin(None, None)
    losses = []
    for step.micro in range(draws):
        losses.append(((method.batch({"x": x}, step)["x"] @ w - y) ** 2).mean())
    found = torch.stack(losses)
    expected = ((x @ w - y) ** 2).mean() + std**2 * w.square().sum()
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(draws)


def test_noise_refuses_token_ids() -> None:
    recipe, optimizer = attach(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 4)), GaussianNoise())
    with pytest.raises(TypeError, match=r"GaussianNoise needs real inputs, but x holds torch.int64"):
        recipe.step({"x": torch.ones(4, 2, dtype=torch.long), "y": torch.arange(4)}, optimizer)


# ---- dropout
def test_dropout_zeroes_the_share_and_keeps_the_mean() -> None:
    model = nn.Sequential(nn.Linear(6, 4000), nn.Softplus(), nn.Linear(4000, 4))
    recorder = Recorder()
    recipe, optimizer = attach(model, Dropout(p=0.3), recorder)
    recipe.step(rows(6), optimizer)
    out = recorder.seen[0]
    n = out.numel()
    assert abs((out == 0).float().mean() - 0.3) < 4 * math.sqrt(0.21 / n)
    again = nn.Sequential(model[0], model[1])
    assert torch.isfinite(again(rows(6)["x"])).all()


def test_kept_activations_are_scaled() -> None:
    model, recorder = mlp(), Recorder()
    recipe, optimizer = attach(model, Dropout(p=0.5), recorder, lr=0.0)
    batch = rows(6)
    plain = F.relu(model[0](batch["x"])).detach()
    recipe.step(batch, optimizer)
    kept = recorder.seen[0] != 0
    torch.testing.assert_close(recorder.seen[0][kept], 2 * plain[kept])


@pytest.mark.parametrize("p", [0.0, 0.003, 0.1, 0.5, 0.99])
def test_entries_drop_independently_with_the_asked_probability(p: float) -> None:
    torch.manual_seed(0)
    n = 400_003
    out = dropped(torch.ones(n, dtype=torch.float64), p)
    kept = (out > 0).double()
    assert abs(kept.mean() - (1 - p)) <= 4 * math.sqrt(p * (1 - p) / n)
    assert out.max() * (1 - p) == pytest.approx(1, rel=1e-6)  # the mean stays
    for lag in (1, 2, 3, 4):
        together = (kept[lag:] * kept[:-lag]).mean()
        assert abs(together - (1 - p) ** 2) <= 8 * math.sqrt(p * (1 - p) / n)


def test_dropping_keeps_dtype_and_is_linear() -> None:
    x = torch.randn(5, 7, 3, dtype=torch.float64, generator=generator()).transpose(0, 1).requires_grad_()
    y = dropped(x, 0.4)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, x * g)
    assert set(g.unique().tolist()) <= {0.0, float(torch.tensor(1 / 0.6))}
    assert dropped(torch.ones(3, 5, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16
    assert dropped(torch.empty(0, 4), 0.5).shape == (0, 4)


def test_extra_passes_repeat_the_masks_and_steps_do_not() -> None:
    """SAM's second gradient and step.forward see the masks of the main pass; the next step draws anew."""
    model, recorder = mlp(), Recorder(extra=True)
    recipe, optimizer = attach(model, Dropout(), recorder, wp.SAM(rho=1e-6), lr=0.0)
    for _ in range(2):
        recipe.step(rows(6), optimizer)
    masks = [(s != 0) for s in recorder.seen]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert all((r == 0).all() for r in recorder.repeated)


def test_microbatches_draw_their_own_masks() -> None:
    model, recorder = mlp(), Recorder()
    recipe, optimizer = attach(model, Dropout(), recorder, lr=0.0)
    recipe.step([rows(6), rows(6)], optimizer)
    assert not torch.equal(recorder.seen[0], recorder.seen[1])


def test_a_shared_activation_gets_a_mask_at_each_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Softplus()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen = [self.act(x), self.act(x)]
            return self.seen[0][:, :4] + self.seen[1][:, :4]

    model = nn.Sequential(nn.Linear(6, 64), Twice())
    recipe, optimizer = attach(model, Dropout())
    recipe.step(rows(6), optimizer)
    assert not torch.equal(model[1].seen[0] == 0, model[1].seen[1] == 0)


def test_dropout_is_off_in_evaluation_and_gone_after_detach() -> None:
    model = mlp()
    batch = rows(6)
    plain = model(batch["x"])
    recipe, _ = attach(model, Dropout())
    with recipe.evaluating():
        assert torch.equal(model(batch["x"]), plain)
    recipe.detach()
    assert torch.equal(model(batch["x"]), plain)
    assert not any(m._forward_hooks for m in model.modules())


def test_named_layers_only() -> None:
    model, recorder = mlp(), Recorder(layer="1")
    recipe, optimizer = attach(model, Dropout(layers=("2",)), recorder, lr=0.0)
    plain = model[1](model[0](rows(6)["x"])).detach()
    recipe.step(rows(6), optimizer)
    assert torch.equal(recorder.seen[0], plain)


def test_dropout_says_what_it_cannot_find() -> None:
    with pytest.raises(wp.RecipeError, match="acts after activation modules and the model has none"):
        attach(nn.Linear(6, 4), Dropout())
    model = mlp()
    with pytest.raises(wp.RecipeError, match=r"Dropout: the model has no submodule 'relu'; it has "):
        attach(model, Dropout(layers=("1", "relu")))
    assert not any(m._forward_hooks for m in model.modules()), "the first hook stayed on after the failure"

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    recipe, optimizer = attach(Recurrent(), Dropout(layers=("rnn",)))
    with pytest.raises(TypeError, match="needs a submodule that returns a tensor; RNN returns more"):
        recipe.step(rows(3, 6), optimizer)


# ---- masked sub-branch
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75])
def test_masks_drop_the_exact_share(ratio: float) -> None:
    flat = random_mask(torch.Size([5, 12]), ratio, 2, generator())
    assert flat.shape == (5, 12)
    assert (flat.sum(1) == 12 - round(12 * ratio)).all()
    tokens = random_mask(torch.Size([5, 8, 3]), ratio, 2, generator())
    assert tokens.shape == (5, 8, 1)
    assert (tokens.sum((1, 2)) == 8 - 8 * ratio).all()
    image = random_mask(torch.Size([5, 3, 8, 12]), ratio, 4, generator())
    assert image.shape == (5, 1, 8, 12)
    blocks = image.view(5, 2, 4, 3, 4).float().mean((2, 4))
    assert ((blocks == 0) | (blocks == 1)).all()
    assert (blocks.sum((1, 2)) == 6 - round(6 * ratio)).all()


def test_masks_are_uniform_and_differ_between_samples() -> None:
    n = 4000
    mask = random_mask(torch.Size([n, 6]), 0.5, 1, generator()).float()
    assert (abs(mask.mean(0) - 0.5) < 4 * 0.5 / math.sqrt(n)).all()
    assert len(mask.unique(dim=0)) == 20  # all subsets of size 3


def test_squares_that_do_not_fit_are_cut_off() -> None:
    mask = random_mask(torch.Size([2, 1, 7, 5]), 0.5, 2, generator())
    assert mask.shape == (2, 1, 7, 5)
    assert torch.equal(mask[..., 0, :], mask[..., 1, :])
    with pytest.raises(ValueError, match=r"at least two dimensions, got shape \(4,\)"):
        random_mask(torch.Size([4]), 0.5, 2, generator())


def test_distillation_loss_by_hand() -> None:
    g = generator()
    s, t = torch.randn(4, 3, generator=g).double().requires_grad_(), torch.randn(4, 3, generator=g).double()
    by_hand = torch.stack([-(F.softmax(t[i], 0) * F.log_softmax(s[i], 0)).sum() for i in range(4)])
    torch.testing.assert_close(distillation_loss(s, t), by_hand)
    p = torch.sigmoid(t)
    sets = -(p * torch.sigmoid(s).log() + (1 - p) * torch.sigmoid(-s).log()).mean(1)
    torch.testing.assert_close(distillation_loss(s, t, multihot=True), sets)
    assert torch.autograd.gradcheck(lambda v: distillation_loss(v, t), s)
    assert torch.autograd.gradcheck(lambda v: distillation_loss(v, t, multihot=True), s)
    t.requires_grad_()
    (g_t,) = torch.autograd.grad(distillation_loss(s, t).sum(), t, allow_unused=True)
    assert g_t is None, "the main branch must not be pulled towards the sub-branch"


def test_loss_is_least_where_the_branches_agree() -> None:
    """Gibbs: cross-entropy to p is smallest at p, where its gradient vanishes."""
    t = torch.randn(5, 4, generator=generator()).double()
    s = t.clone().requires_grad_()
    (g,) = torch.autograd.grad(distillation_loss(s, t).sum(), s)
    assert g.abs().max() < 1e-15
    for seed in range(5):
        other = t + torch.randn(5, 4, generator=generator(seed)).double()
        assert (distillation_loss(other, t) > distillation_loss(t, t)).all()


def test_sub_branch_term_by_hand() -> None:
    model = mlp().double()
    method = MaskSub(ratio=0.5, strength=0.7)
    recipe, optimizer = attach(model, method, lr=0.0)
    batch = {"x": rows(6)["x"].double(), "y": rows(6)["y"]}
    step = wp.Step(recipe, None, None)
    kept = random_mask(batch["x"].shape, 0.5, 2, step.rng(method, device=batch["x"].device))
    wanted = 0.7 * distillation_loss(model(batch["x"] * kept), model(batch["x"])).detach().mean()
    assert float(recipe.step(batch, optimizer)["MaskSub"]) == pytest.approx(float(wanted), rel=1e-12)


def test_dropsub_drops_in_the_sub_branch_only() -> None:
    model, recorder = mlp(), Recorder()
    recipe, optimizer = attach(model, MaskSub(mode="dropout"), recorder, lr=0.0)
    plain = model[1](model[0](rows(6)["x"])).detach()
    terms = recipe.step(rows(6), optimizer)
    assert torch.equal(recorder.seen[0], plain)
    p = F.softmax(model(rows(6)["x"]), 1)
    entropy = -(p * p.log()).sum(1).mean()
    assert terms["MaskSub"] > entropy, "the sub-branch was the main branch"
    recipe.detach()
    assert not any(m._forward_hooks for m in model.modules())


def test_masksub_works_on_token_targets() -> None:
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.act, self.head = nn.Embedding(9, 8), nn.ReLU(), nn.Linear(8, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.embed(x)))

    model = PerToken()
    recipe = wp.Recipe(MaskSub(mode="dropout")).attach(model, NextToken(classes=9))
    batch = {"x": torch.arange(20).view(4, 5) % 9, "y": torch.arange(1, 21).view(4, 5) % 9}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert float(recipe.step(batch, optimizer)["MaskSub"]) > 0
    recipe.detach()
    masked = wp.Recipe(MaskSub()).attach(model, NextToken(classes=9))
    with pytest.raises(TypeError, match=r"MaskSub masks real inputs, but x holds torch.int64; use mode='dropout'"):
        masked.step(batch, optimizer)


def test_masksub_refuses_unknown_modes() -> None:
    with pytest.raises(ValueError, match="mode must be 'mask' or 'dropout', got 'drop'"):
        MaskSub(mode="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "shape"), [(convnet, (2, 7, 7)), (Encoder, (5, 8)), (mlp, (6,))], ids=["conv", "transformer", "mlp"]
)
@pytest.mark.parametrize(
    "method",
    [GaussianNoise, Dropout, MaskSub, lambda: MaskSub(mode="dropout", ratio=0.2)],
    ids=["noise", "dropout", "mask", "dropsub"],
)
def test_trains(method: Any, model: Any, shape: tuple[int, ...]) -> None:
    net = model()
    recipe = wp.Recipe(method()).attach(net, wp.Classify(classes=4))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = [float(recipe.step(rows(*shape), optimizer)["task"]) for _ in range(25)]
    assert sum(losses[-5:]) < sum(losses[:5])
