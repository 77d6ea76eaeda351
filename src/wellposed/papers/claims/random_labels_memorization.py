"""Randomisation tests of generalisation, Zhang et al. 2017."""

import torch

from ...theory.random_labels import corrupt_labels, epochs_to_fit
from ..arenas import digits, mlp
from ..claim import Claim
from ..measures import quality
from ..mutation import Mutation, fixed

LIMIT = 400
SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """The same net trained on more and more random labels, with weight decay."""
    sample = digits(seed, 300)
    train, test, epochs = [], [], []
    for share in SHARES:
        labels = corrupt_labels(sample.y, share, 10, torch.Generator().manual_seed(seed))
        net = mlp(seed, 64, 256, 256, 10)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.1, fused=True)
        found = epochs_to_fit(net, sample.x, labels, optimizer, classes=10, limit=LIMIT, seed=seed)
        epochs.append(float(found or LIMIT))
        train.append(quality(net, sample.x, labels)["accuracy"])
        test.append(quality(net, sample.x_test, sample.y_test)["accuracy"])
    return {"curve": {"share": SHARES, "train accuracy": train, "test accuracy": test, "epochs": epochs}}


CLAIM = Claim(
    paper="random-labels-memorization",
    statement="A net fits labels drawn at random, although weight decay acts and although nothing can be learned from "
    "them: accuracy on the training data is far above that on test data.",
    arena=f"digits, 300 training scans, a share of the labels drawn at random; MLP 64-256-256-10, AdamW 2e-3, weight "
    f"decay 0.1, batch 32, until all labels are fitted or for {LIMIT} epochs",
    quantity="points of training minus test accuracy where all labels are random",
    kind="curve",
    gain=lambda curve: curve["train accuracy"][-1] - curve["test accuracy"][-1],
    margin=45.0,  # half of the effect on other seeds
    run=run,
    mutation=Mutation(
        words="labels left as they are",
        target="wellposed.theory.random_labels:corrupt_labels",
        by=fixed(share=0.0),
    ),
)
