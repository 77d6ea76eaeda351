"""Grokking as the transition from lazy to rich training, Kumar et al. 2024."""

import math

import torch

from ...theory.lazy_rich import GrokkingGap, LazyScaling, PolynomialStudent, grokking_gap, polynomial_error
from ..claim import Claim, Curve
from ..mutation import Mutation, fixed

INPUTS, UNITS, ROWS = 40, 100, 400
ALPHAS = [0.25, 0.5, 1.0, 2.0, 4.0]
LIMIT = 2000
THRESHOLD = 0.05  # a tenth of the variance of the targets


def steps(seed: int, alpha: float) -> GrokkingGap:
    """When one student has fitted its training data, and when it generalises."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, INPUTS, generator=g) / math.sqrt(INPUTS)
    beta = torch.randn(INPUTS, generator=g)
    beta = beta * math.sqrt(INPUTS) / beta.norm()
    y = (x @ beta).square() / 2
    student = LazyScaling(PolynomialStudent(INPUTS, UNITS, 0.25, g), alpha)
    optimizer = torch.optim.SGD(student.model.parameters(), lr=20.0 * UNITS)  # outputs are means over the units
    train: list[float] = []
    test: list[float] = []
    for _ in range(LIMIT):
        loss = (student(x) - y).square().mean()
        train.append(loss.item())
        test.append(polynomial_error(student, beta).item())
        if max(train[-1], test[-1]) <= THRESHOLD:
            break
        optimizer.zero_grad()
        (student.factor * loss / 2).backward()
        optimizer.step()
    return grokking_gap(train, test, THRESHOLD)


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """The same student from rich to lazy; a test loss that stays too high counts as the last step."""
    gaps = [steps(seed, alpha) for alpha in ALPHAS]
    return {
        "curve": {
            "alpha": ALPHAS,
            "steps until fitted": [gap.train for gap in gaps],
            "steps until it generalises": [gap.test for gap in gaps],
        }
    }


def widened(curve: Curve) -> float:
    """Decades between the two at the largest alpha, minus those at the smallest."""
    gaps = [
        math.log10(late / early)
        for early, late in zip(curve["steps until fitted"], curve["steps until it generalises"], strict=True)
    ]
    return gaps[-1] - gaps[0]


CLAIM = Claim(
    paper="grokking-lazy-to-rich",
    statement="The lazier the training, the later the test loss follows the training loss, without any weight decay: a "
    "larger output scale alpha widens their distance in time.",
    arena=f"(beta x)^2 / 2 of {INPUTS} inputs, {ROWS} training points; {UNITS} units h + h^2 / 8, squared error over "
    f"alpha^2, full batches, at most {LIMIT} steps; threshold a tenth of the variance, test loss in closed form",
    quantity="decades between the steps at which test and training loss fall, alpha 4 minus alpha 0.25",
    kind="curve",
    gain=widened,
    margin=0.1,
    run=run,
    mutation=Mutation(
        words="alpha 1 whatever is asked for",
        target="wellposed.theory.lazy_rich:LazyScaling",
        by=fixed(alpha=1.0),
    ),
)
