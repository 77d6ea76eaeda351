"""MixUp, CutMix and DecoupledMixup."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.augmentation._mixing import draw_share
from wellposed.augmentation.cutmix import CutMix, cutmix_batch, draw_box
from wellposed.augmentation.decoupled_mixup import DecoupledMixup, decoupled_mixup_bce, decoupled_mixup_loss
from wellposed.augmentation.mixup import MixUp, mixup_batch
from wellposed.tasks.regress import Regress


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Encoder(nn.Module):
    """A small transformer classifier of (B, T, 8)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def convnet(classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, classes)
    )


def fit(method: wp.Method, model: nn.Module, batch: dict[str, Tensor], steps: int = 8) -> list[float]:
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return [float(recipe.step(batch, optimizer)["total"]) for _ in range(steps)]


def images(n: int = 16) -> dict[str, Tensor]:
    return {"x": torch.randn(n, 2, 8, 8, generator=generator(1)), "y": torch.arange(n) % 4}


# ---- mixup
def test_mixup_is_the_convex_combination() -> None:
    g = generator()
    x, y = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.randn(5, 2, generator=g, dtype=torch.float64)
    partner = torch.tensor([3, 0, 4, 1, 2])
    mixed_x, mixed_y = mixup_batch(x, y, partner, 0.3)
    for i, j in enumerate(partner.tolist()):
        torch.testing.assert_close(mixed_x[i], 0.3 * x[i] + 0.7 * x[j])
        torch.testing.assert_close(mixed_y[i], 0.3 * y[i] + 0.7 * y[j])
    assert torch.equal(mixup_batch(x, y, partner, 1.0)[0], x)
    assert torch.autograd.gradcheck(lambda v: mixup_batch(v, y, partner, 0.3)[0], x.requires_grad_())


def test_shares_are_beta_distributed() -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), within four standard errors; no NaN at tiny alpha."""
    n = 4000
    for alpha in (0.2, 1.0, 8.0):
        g = generator(3)
        draws = torch.tensor([draw_share(alpha, g) for _ in range(n)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(draws.mean() - 0.5) < 4 * math.sqrt(variance / n)
        spread = (draws - 0.5).square()
        assert abs(spread.mean() - variance) < 4 * spread.std() / math.sqrt(n)
    g = generator()
    assert all(0 <= draw_share(1e-3, g) <= 1 for _ in range(200))


def test_mixed_targets_give_the_two_weighted_losses() -> None:
    """Cross-entropy is linear in the target: one mixed target, or the paper's two losses."""
    logits, a, b = torch.randn(6, 4, generator=generator()), torch.arange(6) % 4, torch.tensor([1, 1, 0, 3, 2, 0])
    y = F.one_hot(a, 4).float()
    order = torch.tensor([1, 4, 0, 3, 2, 5])
    _, mixed_y = mixup_batch(logits, y, order, 0.7)
    partner = a[order]
    two = 0.7 * F.cross_entropy(logits, a, reduction="none") + 0.3 * F.cross_entropy(logits, partner, reduction="none")
    torch.testing.assert_close(wp.Classify(classes=4).loss({"logits": logits}, {"y": mixed_y}), two)
    assert not torch.equal(partner, b)


@pytest.mark.parametrize("multihot", [False, True])
def test_mixup_of_each_kind_of_target(multihot: bool) -> None:
    model = nn.Linear(3, 4)
    y = torch.eye(4)[torch.arange(6) % 4] if multihot else torch.arange(6) % 4
    recipe = wp.Recipe(MixUp(alpha=1.0)).attach(model, wp.Classify(classes=4, multihot=multihot))
    terms = recipe.step({"x": torch.randn(6, 3), "y": y.long()}, torch.optim.SGD(model.parameters(), 0.1))
    assert torch.isfinite(terms["total"])


def test_mixup_of_real_targets() -> None:
    """A linear model's residuals on mixtures are mixtures of residuals."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    x, y = torch.randn(8, 3, generator=generator()).double(), torch.randn(8, generator=generator(1)).double()
    order = torch.randperm(8, generator=generator(2))
    mx, my = mixup_batch(x, y, order, 0.4)
    torch.testing.assert_close(model(mx) - my, torch.lerp((model(x) - y)[order], model(x) - y, 0.4))
    recipe = wp.Recipe(MixUp()).attach(model, Regress())
    assert torch.isfinite(recipe.step({"x": x, "y": y}, torch.optim.SGD(model.parameters(), 0.1))["total"])


@pytest.mark.parametrize("method", [MixUp, CutMix, DecoupledMixup])
def test_unknown_number_of_classes_is_refused(method: type[wp.Method]) -> None:
    with pytest.raises(wp.RecipeError, match=r"how many classes there are; write Classify\(classes=...\)"):
        wp.Recipe(method()).attach(nn.Linear(3, 4), wp.Classify())


def test_token_ids_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 4))
    recipe = wp.Recipe(MixUp()).attach(model, wp.Classify(classes=4))
    with pytest.raises(TypeError, match=r"MixUp mixes real inputs, but x holds torch.int64"):
        recipe.step(
            {"x": torch.ones(4, 3, dtype=torch.long), "y": torch.arange(4)}, torch.optim.SGD([*model.parameters()])
        )


# ---- cutmix
def test_cutmix_pastes_one_rectangle_and_counts_its_area() -> None:
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 6, 5).clone()
    partner, (top, bottom, left, right) = torch.tensor([1, 2, 0]), (1, 4, 2, 5)
    mixed, y, share = cutmix_batch(x, torch.eye(3), partner, (top, bottom, left, right))
    for b in range(3):
        for i in range(6):
            for j in range(5):
                inside = top <= i < bottom and left <= j < right
                assert (mixed[b, :, i, j] == (partner[b] if inside else b)).all()
    assert share == pytest.approx(1 - 9 / 30)
    torch.testing.assert_close(y, share * torch.eye(3) + (1 - share) * torch.eye(3)[partner])
    assert (x[0] == 0).all(), "the batch was written over"


def test_boxes_stay_inside_and_have_the_asked_area_when_unclipped() -> None:
    g = generator()
    for _ in range(300):
        top, bottom, left, right = draw_box(9, 14, 0.6, g)
        assert 0 <= top <= bottom <= 9
        assert 0 <= left <= right <= 14
        assert bottom - top <= int(9 * math.sqrt(0.4))
    top, bottom, left, right = draw_box(8, 8, 1.0, g)
    assert (bottom - top) * (right - left) == 0


def test_cutmix_refuses_rows() -> None:
    model = nn.Linear(3, 4)
    recipe = wp.Recipe(CutMix()).attach(model, wp.Classify(classes=4))
    with pytest.raises(ValueError, match=r"CutMix needs images \(B, ..., H, W\), got inputs of shape \(4, 3\)"):
        recipe.step({"x": torch.randn(4, 3), "y": torch.arange(4)}, torch.optim.SGD(model.parameters()))


# ---- decoupled mixup
def reference(logits: Tensor, a: Tensor, b: Tensor) -> Tensor:
    rows = []
    for z, i, j in zip(logits, a.tolist(), b.tolist(), strict=True):
        if i == j:
            rows.append(z.sum() * 0)
            continue
        p = F.softmax(z, 0)  # phi_ab = p_a / (1 - p_b)
        rows.append(-(p[i] / (1 - p[j])).log() - (p[j] / (1 - p[i])).log())
    return torch.stack(rows)


def test_decoupled_loss_equals_the_ratio_form() -> None:
    logits = torch.randn(7, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    a, b = torch.tensor([0, 1, 2, 3, 4, 0, 2]), torch.tensor([1, 1, 0, 4, 2, 0, 3])
    torch.testing.assert_close(decoupled_mixup_loss(logits, a, b), reference(logits, a, b), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda z: decoupled_mixup_loss(z, a, b), logits)
    assert torch.autograd.gradgradcheck(lambda z: decoupled_mixup_loss(z, a, b), logits)


def test_mixed_classes_do_not_compete() -> None:
    """The term of a has exactly no gradient at b's logit: only the other classes and itself move it."""
    logits = torch.randn(1, 5, generator=generator(), requires_grad=True)
    a, b = torch.tensor([1]), torch.tensor([3])
    (g,) = torch.autograd.grad(decoupled_mixup_loss(logits, a, b).sum(), logits)
    (others,) = torch.autograd.grad(  # a's term alone
        -(logits[0, 1] - torch.logsumexp(logits[0, [0, 1, 2, 4]], 0)), logits
    )
    assert others[0, 3] == 0
    assert g[0, 1] == pytest.approx(float(others[0, 1]), rel=1e-5)
    assert g[0, 1] < 0
    assert g[0, 3] < 0


def test_both_classes_confident_costs_nothing_at_any_ratio() -> None:
    logits = torch.full((1, 6), -50.0, dtype=torch.float64)
    logits[0, 2], logits[0, 4] = 3.0, 1.0
    assert float(decoupled_mixup_loss(logits, torch.tensor([2]), torch.tensor([4]))) < 1e-18


def test_two_classes_and_equal_pairs_give_exactly_zero() -> None:
    logits = torch.randn(4, 2, generator=generator(), requires_grad=True)
    loss = decoupled_mixup_loss(logits, torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 0, 1]))
    (g,) = torch.autograd.grad(loss.sum(), logits)
    assert (loss == 0).all()
    assert (g == 0).all()


def test_bce_form_rescales_each_class_by_itself() -> None:
    logits = torch.randn(2, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    y_a, y_b = torch.eye(3)[:2].double(), torch.eye(3)[1:].double()
    plain = F.binary_cross_entropy_with_logits(logits, 0.3 * y_a + 0.7 * y_b, reduction="none").mean(1)
    torch.testing.assert_close(decoupled_mixup_bce(logits, y_a, y_b, 0.3, t=1.0, xi=1.0), plain)
    union = F.binary_cross_entropy_with_logits(logits, y_a + y_b, reduction="none").mean(1)
    torch.testing.assert_close(decoupled_mixup_bce(logits, y_a, y_b, 0.3, t=0.0), union)
    # share 0.3 at xi 0.8, t 0.5: sqrt(0.375); share 0.7: sqrt(0.875)
    soft = F.binary_cross_entropy_with_logits(logits, 0.375**0.5 * y_a + 0.875**0.5 * y_b, reduction="none").mean(1)
    torch.testing.assert_close(decoupled_mixup_bce(logits, y_a, y_b, 0.3, t=0.5), soft)
    assert torch.autograd.gradcheck(lambda z: decoupled_mixup_bce(z, y_a, y_b, 0.3), logits)
    with pytest.raises(ValueError, match="needs t >= 0 and xi in"):
        decoupled_mixup_bce(logits, y_a, y_b, 0.3, xi=0.0)


def test_penalty_uses_the_pairs_of_its_own_microbatch() -> None:
    """The logged term is the weighted mean of the terms of each microbatch's own mixture."""
    model, seen = nn.Linear(3, 4).double(), []
    method = DecoupledMixup(strength=1.0)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=4))
    kept = method.penalty

    def spy(step: wp.Step) -> Tensor | None:
        a, b, share = (step.batch[k] for k in ("mix_a", "mix_b", "mix_lam"))
        torch.testing.assert_close(
            step.batch["y"], share * F.one_hot(a, 4).double() + (1 - share) * F.one_hot(b, 4).double()
        )
        seen.append(float(decoupled_mixup_loss(step.out["logits"], a, b).detach().mean()))
        return kept(step)

    object.__setattr__(method, "penalty", spy)
    x = torch.randn(9, 3, dtype=torch.float64, generator=generator())
    parts = [{"x": x[:3], "y": torch.tensor([0, 1, 2])}, {"x": x[3:], "y": torch.tensor([3, 2, 1, 0, 0, 1])}]
    terms = recipe.step(parts, torch.optim.SGD(model.parameters(), 0.1))
    assert float(terms["DecoupledMixup"]) == pytest.approx((3 * seen[0] + 6 * seen[1]) / 9)


def test_decoupled_mixup_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="mode must be 'mixup' or 'cutmix', got 'both'"):
        DecoupledMixup(mode="both")  # type: ignore[arg-type]
    model = nn.Linear(3, 4)
    recipe = wp.Recipe(MixUp(alpha=1.0), DecoupledMixup()).attach(model, wp.Classify(classes=4))
    with pytest.raises(wp.RecipeError, match="needs class ids; list it before other methods"):
        recipe.step({"x": torch.randn(4, 3), "y": torch.arange(4)}, torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize(
    "method", [MixUp(alpha=1.0), CutMix(), DecoupledMixup(), DecoupledMixup(mode="cutmix")], ids=repr
)
def test_trains_a_convnet(method: wp.Method) -> None:
    torch.manual_seed(0)
    losses = fit(method, convnet(), images(), steps=12)
    assert sum(losses[-4:]) < sum(losses[:4])


def test_mixes_token_embeddings_for_a_transformer() -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(16, 5, 8, generator=generator()), "y": torch.arange(16) % 4}
    for method in (MixUp(alpha=0.2), DecoupledMixup()):
        assert all(map(math.isfinite, fit(method, Encoder(), batch, steps=3)))
