"""Weights of diffusion times: the published formulas, and one objective whatever is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wellposed import Recipe
from wellposed.diffusion.debiased import Debiased
from wellposed.diffusion.min_snr import MinSNR
from wellposed.diffusion.snr_weights import P2, PowerSNR, SNRWeight, TruncatedSNR
from wellposed.tasks import Denoise

FAMILY: list[SNRWeight] = [MinSNR(), MinSNR(0.3), Debiased(), Debiased(math.inf), TruncatedSNR(), P2(), PowerSNR(0.7)]
SNR = torch.logspace(-6, 6, 61, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "prediction", "published"),
    [
        (MinSNR(5), "epsilon", lambda s: min(s, 5) / s),
        (MinSNR(5), "x0", lambda s: min(s, 5)),
        (MinSNR(5), "v", lambda s: min(s, 5) / (s + 1)),
        (Debiased(1000), "epsilon", lambda s: 1 / math.sqrt(min(s, 1000))),
        (Debiased(math.inf), "x0", math.sqrt),
        (Debiased(math.inf), "v", lambda s: math.sqrt(s) / (s + 1)),
        (TruncatedSNR(), "x0", lambda s: max(s, 1)),
        (TruncatedSNR(), "v", lambda s: max(s, 1) / (s + 1)),
        (P2(1, 0.5), "epsilon", lambda s: 1 / math.sqrt(1 + s)),
        (PowerSNR(), "epsilon", lambda s: 1.0),
        (PowerSNR(), "x0", lambda s: s),
        (PowerSNR(1), "x0", lambda s: 1.0),
    ],
    ids=lambda value: str(value) if isinstance(value, SNRWeight | str) else "published",
)
def test_published_formulas(weight: SNRWeight, prediction: Any, published: Callable[[float], float]) -> None:
    wanted = torch.tensor([published(float(s)) for s in SNR], dtype=torch.float64)
    torch.testing.assert_close(weight.weight(SNR, prediction), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("weight", FAMILY, ids=repr)
def test_one_objective_whatever_is_predicted(weight: SNRWeight) -> None:
    """The same estimate, off by some error, costs the same as noise, as clean sample, as v and as velocity."""
    g = torch.Generator().manual_seed(0)
    alpha, sigma = (SNR / (1 + SNR)).sqrt(), (1 / (1 + SNR)).sqrt()
    wrong = torch.randn(len(SNR), generator=g, dtype=torch.float64)  # error of the clean sample
    errors = {"x0": wrong, "epsilon": alpha / sigma * wrong, "v": wrong / sigma}
    losses = [weight.weight(SNR, kind) * error.square() for kind, error in errors.items()]  # type: ignore[arg-type]
    for one, other in pairwise(losses):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    t = 1 / (1 + SNR.sqrt())  # the straight path: alpha = 1 - t, sigma = t
    torch.testing.assert_close(weight.weight(SNR, "velocity") * (wrong / t).square(), losses[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("predict", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("weight", FAMILY, ids=repr)
def test_denoise_and_a_loop_of_your_own_agree(weight: SNRWeight, predict: Any) -> None:
    g = torch.Generator().manual_seed(1)
    simple, weighted = Denoise(predict, steps=100), Denoise(predict, steps=100, weighting=weight)
    batch = {"x": torch.randn(100, 3, generator=g).double(), "t": torch.arange(100)}
    batch["noise"] = torch.randn(100, 3, generator=g).double()
    out = {"prediction": torch.randn(100, 3, generator=g).double()}
    alpha, sigma = (v.flatten() for v in simple.levels(batch["t"], batch["x"]))
    own = weight.weight((alpha / sigma).square(), predict) * simple.loss(out, batch)
    torch.testing.assert_close(weighted.loss(out, batch), own, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["v_prediction", "sample"])
def test_names_of_other_libraries_are_refused(name: Any) -> None:
    """Not taken for the velocity."""
    with pytest.raises(ValueError, match=f"prediction must be one of epsilon, x0, v, velocity, got '{name}'"):
        MinSNR().weight(SNR, name)


@pytest.mark.parametrize("weight", FAMILY, ids=repr)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "velocity"])
def test_no_signal_and_no_noise_give_finite_weights(weight: SNRWeight, prediction: Any) -> None:
    assert torch.isfinite(weight.weight(torch.tensor([0.0, math.inf]), prediction)).all()


class ConvDenoiser(nn.Module):
    """Images and their times."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, (t.to(x) / 20).view(-1, 1, 1, 1).expand_as(x)], 1))


@pytest.mark.parametrize("weight", FAMILY, ids=repr)
def test_a_conv_net_learns(weight: SNRWeight) -> None:
    torch.manual_seed(0)
    model, task = ConvDenoiser(), Denoise("v", "cosine", steps=20, weighting=weight)
    recipe, g = Recipe().attach(model, task), torch.Generator().manual_seed(0)
    batch = task.draw(torch.randn(8, 1, 6, 6, generator=g).sign(), g)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = [float(recipe.step(batch, optimizer)["task"]) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: MinSNR(0), "MinSNR: gamma must be above 0, got 0"),
        (lambda: Debiased(-1), "Debiased: clip must be above 0, got -1"),
        (lambda: TruncatedSNR(0), "TruncatedSNR: least must be above 0, got 0"),
        (lambda: P2(k=0), "P2: k must be above 0, got 0"),
    ],
)
def test_bad_settings(build: Callable[[], object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        build()
