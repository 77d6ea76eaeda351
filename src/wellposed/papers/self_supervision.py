"""What the claims about two views share: augmented digits, an encoder with a projector, training, and probes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Method, Recipe
from ..parts.neighbours import nearest
from ..parts.spectra import centred, effective_rank
from ..tasks import TwoViews
from .arenas import Sample, digits, mlp

Criterion = Callable[[Tensor, Tensor], Tensor]
EPOCHS = 30
WORDS = (
    "1000 digits without labels, views shifted by up to a pixel, scaled by 0.8 to 1.2, with noise of sd 0.1; encoder "
    f"MLP 64-128-64, projector 64-64-32; AdamW 2e-3, batch 100, {EPOCHS} epochs; linear probe on 50 labels"
)


class Encoder(nn.Module):
    """An encoder, 64 pixels to 64 features, and the projector on which criteria act, to 32."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(mlp(seed, 64, 128, 64), nn.ReLU())
        self.projector = mlp(seed + 1_000_000, 64, 64, 32)

    def forward(self, x: Tensor) -> Tensor:
        """The embedding that criteria see."""
        return self.projector(self.encoder(x))


def view(x: Tensor, g: torch.Generator) -> Tensor:
    """Digits (B, 64) shifted by -1, 0 or 1 pixel along both axes, scaled, and with noise."""
    rows = len(x)
    wide = F.pad(x.reshape(rows, 8, 8), (1, 1, 1, 1))
    down, right = torch.randint(3, (2, rows, 1, 1), generator=g)
    places = torch.arange(8)
    moved = wide[torch.arange(rows)[:, None, None], places[:, None] + down, places + right].reshape(rows, 64)
    gain = 0.8 + 0.4 * torch.rand(rows, 1, generator=g)
    return gain * moved + 0.1 * torch.randn(rows, 64, generator=g)


def pretrained(
    seed: int, sample: Sample, criterion: Criterion, *methods: Method, epochs: int = EPOCHS, batch: int = 100
) -> Encoder:
    """An encoder of this seed, trained on two views of the sample's inputs; the labels are not looked at."""
    model = Encoder(seed)
    recipe = Recipe(*methods, seed=seed).attach(model, TwoViews(criterion), steps=epochs * (len(sample.x) // batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    order, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_000)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(sample.x), generator=order), batch):
            x = sample.x[rows]
            recipe.step({"x1": view(x, noise), "x2": view(x, noise)}, optimizer)
    recipe.detach()
    return model.eval()


def agreement(z1: Tensor, z2: Tensor) -> Tensor:
    """Squared distance of the two views' embeddings at length 1, (B,): nothing keeps it from collapsing."""
    return (F.normalize(z1) - F.normalize(z2)).square().sum(1)


def probe(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, labels: int = 5) -> float:
    """Test accuracy (points) of a logistic regression on ``labels`` rows a class, features standardised over all rows.

    A feature that is constant stays so: a collapsed encoder is not rescued by dividing by its rounding errors.
    """
    from sklearn.linear_model import LogisticRegression

    scale = train.std(0) + 1e-3 * train.std(0).max() + 1e-6
    train, test = (train - train.mean(0)) / scale, (test - train.mean(0)) / scale
    few = torch.cat([(y == c).nonzero()[:labels, 0] for c in range(10)])
    found = LogisticRegression(max_iter=1000).fit(train[few].double().numpy(), y[few].numpy())
    return 100 * float(found.score(test.double().numpy(), y_test.numpy()))


def knn_accuracy(train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, k: int = 5) -> float:
    """Test accuracy (points) of the vote of the k nearest training rows by cosine."""
    _, index = nearest(F.normalize(test), k, F.normalize(train))
    return 100 * float((y[index].mode(1).values == y_test).float().mean())


@torch.no_grad()
def measured(model: Encoder, sample: Sample) -> dict[str, float]:
    """Probe and neighbours of the encoder's features, effective ranks of features and embedding on test digits."""
    train, test = model.encoder(sample.x), model.encoder(sample.x_test)
    return {
        "probe accuracy": probe(train, sample.clean, test, sample.y_test),
        "neighbour accuracy": knn_accuracy(train, sample.clean, test, sample.y_test),
        "effective rank of features": float(effective_rank(centred(test))),
        "effective rank of embedding": float(effective_rank(centred(model.projector(test)))),
    }


def sample_of(seed: int) -> Sample:
    """1000 digits to learn from, 597 to test on."""
    return digits(seed, 1000)


def arms(
    seed: int,
    criterion: Criterion,
    *methods: Method,
    without: Criterion | None = None,
    of: Callable[[Encoder, Sample], dict[str, float]] = measured,
) -> dict[str, dict[str, float]]:
    """Both arms of a seed: criterion with methods, and ``without`` (the same criterion) with none.

    The untrained encoder's probe is recorded beside both.
    """
    sample = sample_of(seed)
    untrained = {"probe accuracy of the untrained encoder": measured(Encoder(seed).eval(), sample)["probe accuracy"]}
    return {
        "with": of(pretrained(seed, sample, criterion, *methods), sample) | untrained,
        "without": of(pretrained(seed, sample, without or criterion), sample) | untrained,
    }
