"""Progressive self-distillation: blended targets, what is remembered when, and its company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from classifiers import fitted, problem, rows, slope

import wellposed as wp
from wellposed.objectives.pskd import PSKD, distilled_loss
from wellposed.smoothness.sam import SAM


def attached(*methods: wp.Method, steps: int | None = None) -> tuple[wp.Recipe, dict[str, torch.Tensor]]:
    model, task, batch = problem("conv")
    return wp.Recipe(*methods).attach(model, task, steps=steps), batch


def test_blended_target() -> None:
    logits, y, previous = rows()
    target = 0.7 * F.one_hot(y, 4) + 0.3 * previous
    expected = -(target * F.log_softmax(logits, -1)).sum(-1)
    ce = F.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(distilled_loss(ce, logits, previous, 0.3), expected)
    assert torch.equal(distilled_loss(ce, logits, torch.zeros_like(previous), 0.3), ce)


def test_gradient_is_prediction_minus_blended_target() -> None:
    logits, y, previous = rows()
    found = slope(distilled_loss(F.cross_entropy(logits, y, reduction="none"), logits, previous, 0.3), logits)
    expected = F.softmax(logits, -1) - 0.7 * F.one_hot(y, 4).double() - 0.3 * previous
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)

    def loss(f: torch.Tensor) -> torch.Tensor:
        return distilled_loss(F.cross_entropy(f, y, reduction="none"), f, previous, 0.3)

    assert torch.autograd.gradcheck(loss, logits)


def test_first_visit_is_plain_and_later_ones_use_the_last_prediction() -> None:
    method = PSKD(rows=12, classes=3, alpha=0.8)
    recipe, batch = attached(method)
    model = recipe.bare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = {k: v[:6] for k, v in batch.items()}
    then = F.softmax(model(seen["x"]), -1).detach()
    now = F.cross_entropy(model(seen["x"]), seen["y"]).item()
    assert recipe.step(seen, optimizer, progress=0.5)["task"].item() == pytest.approx(now, rel=1e-6)
    assert torch.allclose(method.memory.values[:6], then, atol=1e-6)
    assert not method.memory.values[6:].any()

    logits = model(seen["x"])
    target = 0.6 * F.one_hot(seen["y"], 3) + 0.4 * then  # 0.8 * progress
    expected = F.cross_entropy(logits, target).item()
    assert recipe.step(seen, optimizer, progress=0.5)["task"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(method.memory.values[:6], F.softmax(logits, -1).detach(), atol=1e-6)


def test_second_pass_of_an_update_keeps_the_target_of_the_first() -> None:
    """SAM differentiates twice: both gradients must use the last visit's prediction, not the one just stored."""
    method = PSKD(rows=12, classes=3, alpha=1.0)
    recipe, batch = attached(SAM(rho=0.1), method)
    optimizer = torch.optim.SGD(recipe.bare.parameters(), lr=0.1)
    recipe.step(batch, optimizer, progress=1.0)
    last = method.memory.values.clone()
    used: list[torch.Tensor] = []
    original = distilled_loss

    def spy(loss: torch.Tensor, logits: torch.Tensor, previous: torch.Tensor, alpha: float) -> torch.Tensor:
        used.append(previous)
        return original(loss, logits, previous, alpha)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wellposed.objectives.pskd.distilled_loss", spy)
        recipe.step(batch, optimizer, progress=1.0)
    assert len(used) == 2
    assert all(torch.equal(q, last) for q in used)
    assert not torch.equal(method.memory.values, last)


def test_share_grows_with_training() -> None:
    """Fixed weights: the target moves from the label towards the prediction, and the loss falls towards entropy."""
    recipe, batch = attached(PSKD(rows=12, classes=3, alpha=1.0))
    still = torch.optim.SGD(recipe.bare.parameters(), lr=0.0)
    recipe.step(batch, still, progress=0.0)
    losses = torch.stack([recipe.step(batch, still, progress=t / 4)["task"] for t in range(5)])
    assert torch.allclose(losses.diff(), losses.diff()[0].expand(4), atol=1e-6)
    entropy = wp.conditional_entropy(recipe.bare(batch["x"])).mean()
    assert losses[-1].item() == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_trains(kind: str) -> None:
    losses = fitted(PSKD(rows=12, classes=3), kind)
    assert losses[-1] < losses[0]


def test_bad_input() -> None:
    recipe, batch = attached(PSKD(rows=12, classes=3))
    with pytest.raises(ValueError, match="needs to know how far training is"):
        recipe.step(batch, torch.optim.SGD(recipe.bare.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="alpha must be 0 to 1"):
        PSKD(rows=12, classes=3, alpha=1.1)
    with pytest.raises(TypeError, match="rows"):
        PSKD(classes=3)
