"""Entropy-guided sequence weighting, Vanlioglu 2025."""

import torch
from torch import Tensor, nn

from ...alignment.egsw import entropy_guided_advantages
from ...core import Recipe
from ...tasks import Policy, group_advantages, token_log_probs
from ..claim import Claim, Curve
from ..mutation import Mutation, fixed

PLACES, TOKENS, GROUP, UPDATES = 3, 4, 8, 300
RATES = (0.5, 1.0, 2.0)
ARMS = {"GRPO": None, "weights, alpha 0": 0.0, "weights, alpha 2": 2.0}


class Places(nn.Module):
    """Independent laws of the tokens at each place, uniform at first; ids (B, places + 1), the first a start token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(PLACES + 1, TOKENS))  # the last predicts nothing

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits.expand(len(ids), -1, -1)


def reached(seed: int, lr: float, alpha: float | None) -> float:
    """Probability of the one right answer after training; without weights where alpha is None."""
    g = torch.Generator().manual_seed(seed)
    right = torch.randint(TOKENS, (PLACES,), generator=g)
    model = Places()
    recipe = Recipe().attach(model, Policy(), check=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    mask = torch.tensor([False] + [True] * PLACES).expand(GROUP, -1)
    for _ in range(UPDATES):
        law = model.logits[:-1].detach().softmax(-1)
        answers = torch.multinomial(law, GROUP, replacement=True, generator=g).T
        ids = torch.cat([torch.zeros(GROUP, 1, dtype=torch.long), answers], 1)
        log_probs = token_log_probs(model(ids).detach(), ids, mask)
        advantage = group_advantages((answers == right).all(1).float(), GROUP)
        if alpha is not None:
            # the laws do not depend on the answer, so their entropy cannot tell answers apart: its one-sample estimate
            entropy = -log_probs.sum(1) / PLACES
            advantage = entropy_guided_advantages(advantage, entropy, GROUP, alpha)
        recipe.step({"ids": ids, "mask": mask, "advantage": advantage, "sampled_log_probs": log_probs}, optimizer)
    return float(model.logits.detach()[:-1].softmax(-1).gather(-1, right[:, None]).prod())


def run(seed: int) -> dict[str, dict[str, list[float]]]:
    """The final reward of GRPO and of both weightings, over the learning rate."""
    curve = {"learning rate": list(RATES)}
    return {"curve": curve | {name: [reached(seed, lr, alpha) for lr in RATES] for name, alpha in ARMS.items()}}


def gain(curve: Curve) -> float:
    """What the entropy adds at the lower rate."""
    return curve["weights, alpha 2"][0] - curve["weights, alpha 0"][0]


CLAIM = Claim(
    paper="egsw",
    kind="curve",
    statement="Among group-weighted policy gradients, weights that count an answer's entropy beside its advantage end "
    "with a higher reward than weights by advantage alone. (It is a matter of step size: GRPO without weights, at the "
    "same and at larger learning rates, is among the measurements.)",
    arena="answers of three places and four tokens, reward 1 for one of the 64; independent laws of the places, groups "
    "of 8, clip 0.2, SGD 0.5, 300 updates, temperature 1; an answer's entropy estimated by its own -log p per token; "
    "probability of the right answer at the end",
    quantity="reward, alpha 2 minus alpha 0 at learning rate 0.5",
    gain=gain,
    margin=0.02,  # about a quarter of what other seeds showed
    run=run,
    mutation=Mutation(words="alpha 0", target="wellposed.alignment.egsw:entropy_guided_weights", by=fixed(alpha=0.0)),
)
