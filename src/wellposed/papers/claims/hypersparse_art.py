"""HyperSparse, Glandorf, Kaiser, Rosenhahn 2023."""

from ...core.schedules import Scalar
from ...sparsity.hypersparse import HyperSparse
from ..arenas import Sample, digits, fit, mlp, quality
from ..claim import Claim
from ..mutation import Mutation, fixed

DENSE, REGULARISED, EPOCHS = 10, 35, 55


def strength(progress: float) -> float:
    """Nothing for 10 epochs, then 1e-5, times 1.3 after every epoch."""
    epoch = int(progress * EPOCHS + 1e-9)
    return 1e-5 * 1.3 ** (epoch - DENSE) if epoch >= DENSE else 0.0


def trained(seed: int, sample: Sample, how_strong: Scalar) -> dict[str, float]:
    """Train, prune 98 % of the weights after 35 epochs, fine-tune."""
    method = HyperSparse(prune_rate=0.98, prune_at=REGULARISED / EPOCHS, strength=how_strong)
    model = mlp(seed, 64, 300, 100, 10)
    return quality(fit(model, sample, method, seed=seed, epochs=EPOCHS, lr=1e-3, batch=50), sample)


def run(seed: int) -> dict[str, dict[str, float]]:
    """With the regulariser, and one-shot magnitude pruning of plain training."""
    sample = digits(seed, 1200)
    return {"with": trained(seed, sample, strength), "without": trained(seed, sample, 0.0)}


CLAIM = Claim(
    paper="hypersparse-art",
    statement="At 98 % sparsity, weights pruned after HyperSparse regularization and fine-tuned give a higher test "
    "accuracy than those pruned by magnitude after plain training and fine-tuned as long.",
    arena="digits, 1200 training scans; MLP 64-300-100-10, AdamW 1e-3, batch 50; 10 epochs dense, 25 regularised with "
    "1e-5 * 1.3^epoch, pruned, 20 more",
    quantity="accuracy",
    margin=7.5,  # a quarter of the +29.9 seen on other seeds
    run=run,
    mutation=Mutation(
        words="strength 0",
        target="wellposed.sparsity.hypersparse:HyperSparse",
        by=fixed(strength=0.0),
    ),
)
