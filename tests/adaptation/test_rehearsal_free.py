"""What holds an old task in place while a new one is learnt."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wellposed as wp
from wellposed.adaptation.feature_distillation import FeatureDistillation
from wellposed.adaptation.lwf import LwF
from wellposed.adaptation.separated_softmax import SeparatedSoftmax, separated_cross_entropy
from wellposed.adaptation.weight_anchor import WeightAnchor, anchored_distance
from wellposed.papers.nets import ConvNet, Transformer, seeded
from wellposed.parts.fisher import fisher_diagonal


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron() -> nn.Sequential:
    net: nn.Sequential = seeded(0, lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)))
    return net


def batch(rows: int = 12, classes: int = 4) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 6, generator=generator(1)), "y": torch.arange(rows) % classes}


def train(model: nn.Module, *methods: wp.Method, steps: int = 20, lr: float = 0.1) -> nn.Module:
    recipe = wp.Recipe(*methods).attach(model, wp.Classify(classes=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        recipe.step(batch(), optimizer)
    return recipe.finish()


# ---- the anchor
def test_distance_by_loops_and_gradient() -> None:
    g = generator()
    w = [torch.randn(3, 2, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64)]
    a = [torch.randn_like(t) for t in w]
    f = [torch.rand_like(t) for t in w]
    by_hand = sum(
        float(fi * (wi - ai) ** 2)
        for wt, at, ft in zip(w, a, f, strict=True)
        for wi, ai, fi in zip(wt.flatten(), at.flatten(), ft.flatten(), strict=True)
    )
    roots = [t.sqrt() for t in f]
    assert float(anchored_distance(w, a, roots)) == pytest.approx(by_hand, rel=1e-12)
    assert torch.autograd.gradcheck(lambda *ws: anchored_distance(ws, a, roots), [t.requires_grad_() for t in w])


def test_the_anchor_is_where_training_began_and_the_gradient_points_back() -> None:
    model = perceptron()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    recipe = wp.Recipe(WeightAnchor(strength=0.5)).attach(model, wp.Classify(classes=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert float(recipe.step(batch(), optimizer)["WeightAnchor"]) == 0
    moved = {n: p.detach() - start[n] for n, p in model.named_parameters()}
    plain = torch.autograd.grad(F.cross_entropy(model(batch()["x"]), batch()["y"]), list(model.parameters()))
    terms = recipe.step(batch(), torch.optim.SGD(model.parameters(), lr=0.0))
    assert float(terms["WeightAnchor"]) == pytest.approx(0.5 * sum(float(d.square().sum()) for d in moved.values()))
    for (n, p), g in zip(model.named_parameters(), plain, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, g + moved[n], rtol=1e-5, atol=1e-7)  # 2 * 0.5 * d


def test_on_a_quadratic_it_ends_at_the_weighted_mean() -> None:
    """Task (w - t)^2 / 3 and anchor lam F (w - a)^2 meet at (t + 3 lam F a) / (1 + 3 lam F), each coordinate."""
    model = nn.Linear(1, 3, bias=False).double()
    a, importance = torch.tensor([[1.0], [2.0], [-1.0]]).double(), torch.tensor([[0.0], [1.0], [4.0]]).double()
    target = torch.tensor([[0.5, -1.0, 3.0]]).double()
    with torch.no_grad():
        model.weight.copy_(a)
    anchor = WeightAnchor(strength=0.25, importance={"weight": importance})
    recipe = wp.Recipe(anchor).attach(model, wp.Regress())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rows = {"x": torch.ones(1, 1).double(), "y": target}
    for _ in range(400):
        recipe.step(rows, optimizer)
    pull = 0.25 * importance * 3  # the task is a mean over three outputs
    torch.testing.assert_close(model.weight.detach(), (target.T + pull * a) / (1 + pull), rtol=1e-9, atol=1e-9)


def test_ewc_moves_least_what_the_old_task_needs() -> None:
    """With the Fisher information of inputs that vary in one coordinate only, the weights of the others move freely."""
    model = nn.Linear(6, 4)
    x = torch.zeros(64, 6)
    x[:, 0] = torch.randn(64, generator=generator())
    fisher = fisher_diagonal(model, [x], generator=generator(2))
    assert float(fisher["weight"][:, 1:].abs().max()) == 0
    start = model.weight.detach().clone()
    free = train(copy.deepcopy(model))
    train(model, WeightAnchor(importance={"weight": fisher["weight"]}, strength=10.0))
    moved, freely = (model.weight.detach() - start).abs(), (free.weight.detach() - start).abs()  # type: ignore[operator]
    assert float(moved[:, 0].mean()) < 0.5 * float(freely[:, 0].mean())
    assert float(moved[:, 1:].mean()) > 0.8 * float(freely[:, 1:].mean())


def test_only_the_attention_of_a_transformer() -> None:
    model = seeded(0, Transformer, 5, 4, size=6, width=8, depth=1, pooled=True)
    anchor = WeightAnchor(weights=("*self_attn*",))
    recipe = wp.Recipe(anchor).attach(model, wp.Classify(classes=4))
    rows = {"x": torch.randn(8, 5, 6), "y": torch.arange(8) % 4}
    terms = [recipe.step(rows, torch.optim.SGD(model.parameters(), lr=0.1)) for _ in range(2)]
    assert float(terms[1]["WeightAnchor"]) > 0
    assert len(anchor.anchors.tensors()) == 4
    assert all("self_attn" in n for n in anchor.anchors.tensors())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weights": ("attn*",)}, "no trained parameter is called 'attn"),
        ({"importance": {}}, "importance is empty"),
        ({"importance": {"9.weight": torch.ones(1)}}, "names '9.weight', which is no trained parameter"),
        ({"importance": {"0.weight": torch.ones(3)}}, r"has shape \(3,\), not \(8, 6\)"),
        ({"importance": {"0.weight": -torch.ones(8, 6)}}, "must be at least 0"),
    ],
)
def test_anchors_that_cannot_be_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(wp.RecipeError, match=sentence):
        wp.Recipe(WeightAnchor(**settings)).attach(perceptron(), wp.Classify(classes=4))  # type: ignore[arg-type]


# ---- the frozen copy
def test_lwf_is_the_divergence_among_old_classes() -> None:
    model = perceptron()
    before = [p.detach().clone() for p in model.parameters()]
    recipe = wp.Recipe(LwF(old=2, temperature=2.0, strength=1.0)).attach(model, wp.Classify(classes=4))
    with torch.no_grad():
        old = model(batch()["x"])
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator(5)))
        new = model(batch()["x"])
    terms = recipe.step(batch(), torch.optim.SGD(model.parameters(), lr=0.0))
    wanted = 0.0
    for f, g in zip(old, new, strict=True):
        was, now = F.softmax(f[:2] / 2, 0), F.softmax(g[:2] / 2, 0)
        wanted += 4 * float((was * (was / now).log()).sum()) / 12
    assert float(terms["LwF"]) == pytest.approx(wanted, rel=1e-5)
    recipe.detach()
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_feature_distillation_is_the_squared_distance_of_the_layer() -> None:
    model = perceptron()
    recipe = wp.Recipe(FeatureDistillation(layer="1", strength=1.0)).attach(model, wp.Classify(classes=4))
    with torch.no_grad():
        old = model[:2](batch()["x"])
        for p in model[0].parameters():
            p.mul_(1.5)
        new = model[:2](batch()["x"])
    terms = recipe.step(batch(), torch.optim.SGD(model.parameters(), lr=0.0))
    assert float(terms["FeatureDistillation"]) == pytest.approx(float((old - new).square().sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("method", [LwF(old=2), FeatureDistillation(layer="features_")], ids=repr)
def test_the_copy_stays_as_it_was_beside_a_convnet(method: wp.Method) -> None:
    model = seeded(0, ConvNet, 4)
    recipe = wp.Recipe(method).attach(model, wp.Classify(classes=4))
    held = {k: v.clone() for k, v in method.state_dict().items()}
    recipe.train()  # whatever mode somebody puts the recipe in
    rows = {"x": torch.randn(8, 64, generator=generator()), "y": torch.arange(8) % 4}
    for _ in range(3):
        terms = recipe.step(rows, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(torch.isfinite(t) for t in terms.values())
    assert held
    assert all(torch.equal(v, held[k]) for k, v in method.state_dict().items())


def test_copies_hold_predictions_on_a_transformer() -> None:
    """Trained on labels of new classes, the old classes' predictions move less with distillation than without."""
    rows = {"x": torch.randn(16, 5, 6, generator=generator()), "y": 2 + torch.arange(16) % 2}
    drift = []
    for methods in ([], [LwF(old=2, strength=3.0)]):
        model: nn.Module = seeded(0, Transformer, 5, 4, size=6, width=8, depth=1, pooled=True)
        before = F.softmax(model(rows["x"]).detach()[:, :2], 1)
        recipe = wp.Recipe(*methods).attach(model, wp.Classify(classes=4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(20):
            recipe.step(rows, optimizer)
        drift.append(float((F.softmax(model(rows["x"]).detach()[:, :2], 1) - before).abs().mean()))
    assert drift[1] < drift[0]


def test_bad_old_is_refused() -> None:
    with pytest.raises(ValueError, match="LwF: old must be at least 1, or None"):
        LwF(old=0)
    recipe = wp.Recipe(LwF(old=9)).attach(perceptron(), wp.Classify(classes=4))
    with pytest.raises(ValueError, match="old=9, but the model gives 4 logits"):
        recipe.step(batch(), torch.optim.SGD(perceptron().parameters(), lr=0.1))
    with pytest.raises(wp.RecipeError, match="FeatureDistillation taps 'body'"):
        wp.Recipe(FeatureDistillation(layer="body")).attach(perceptron(), wp.Classify(classes=4))


# ---- separated softmax
def test_separated_cross_entropy_by_loops() -> None:
    logits = torch.randn(6, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    y, groups = torch.tensor([0, 1, 2, 3, 4, 2]), [[0, 1], [2], [3, 4]]
    found = separated_cross_entropy(logits, y, (2, 3))
    for row, label, value in zip(logits, y.tolist(), found, strict=True):
        among = next(g for g in groups if label in g)
        torch.testing.assert_close(value, row[among].logsumexp(0) - row[label])
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert torch.equal(grad[0, 2:], torch.zeros(3).double()), "a class of another group was pushed"
    assert torch.autograd.gradcheck(lambda z: separated_cross_entropy(z, y, (2, 3)), logits)
    torch.testing.assert_close(separated_cross_entropy(logits, y, ()), F.cross_entropy(logits, y, reduction="none"))


def test_separated_softmax_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"splits must rise and be at least 1, got \(2, 2\)"):
        SeparatedSoftmax(splits=(2, 2))
    recipe = wp.Recipe(SeparatedSoftmax(splits=(2,))).attach(perceptron(), wp.Classify(classes=4))
    soft = {"x": batch()["x"], "y": torch.full((12, 4), 0.25)}
    with pytest.raises(wp.RecipeError, match="needs class ids"):
        recipe.step(soft, torch.optim.SGD(perceptron().parameters(), lr=0.1))
