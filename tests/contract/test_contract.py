"""What every technique must keep, whatever it does. Opting out needs a declared flag, and the flag is verified."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
import re

import foreign
import pytest
import torch
from foreign import FOREIGN
from problems import CLASSES, METHODS, make_batch, make_method, trial, trial_of
from torch import nn

import wellposed as wp
from wellposed.core.card import card
from wellposed.core.method import fields_of
from wellposed.core.registry import catalogue

pytestmark = pytest.mark.filterwarnings("ignore:.*couples the samples of a batch.*:UserWarning")
each = pytest.mark.parametrize("name", METHODS)


@each
def test_card_is_complete_and_papers_exist(name: str) -> None:
    cls = catalogue()[name]
    assert card(cls).summary.endswith(".")
    from wellposed.papers import paper

    for id in cls.paper:
        assert paper(id)["id"] == id
    assert cls.slots(), "a method acts somewhere"
    assert make_method(name).passes() >= 1


@each
def test_off_is_absent(name: str) -> None:
    cls = catalogue()[name]
    if cls.null is None:
        with_it = trial_of(name, norm=True).run(3).weights()
        assert "update" in cls.slots() or not torch.equal(
            with_it, trial(list, trial_kind(name), norm=True).run(3).weights()
        ), f"{name} declares null=None but changes nothing: declare the null settings"
        return
    without = trial(list, trial_kind(name), norm=True).run(3)
    off = trial_of(name, settings=dict(cls.null), norm=True)
    off.run(3)
    assert off.recipe.detach() is off.model
    for (k, a), (_, b) in zip(without.model.state_dict().items(), off.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), k


def trial_kind(name: str) -> str:
    return str(catalogue()[name].example.get("model", "mlp"))


@each
def test_on_is_present(name: str) -> None:
    """Defaults change training, or what is shipped: a technique that does nothing is a fault."""
    without = trial(list, trial_kind(name), norm=True).run(3)
    on = trial_of(name, norm=True).run(3)
    with on.recipe.evaluating() as model:
        shipped = torch.cat([p.detach().flatten() for p in model.parameters()])
    kept = torch.cat([p.detach().flatten() for p in without.model.parameters()])
    if name == "EarlyStopping":  # acts only once it has been shown a score
        assert torch.equal(shipped, kept)
        return
    assert not torch.equal(shipped, kept)


@each
def test_microbatches_equal_the_large_batch(name: str) -> None:
    whole, parts = trial_of(name).run(3), trial_of(name).run(3, split=3)
    gap = (whole.weights() - parts.weights()).abs().max()
    if catalogue()[name].exact and catalogue()[name].scope != "batch":
        assert gap < 1e-10
    else:
        assert gap > 1e-10, f"{name} declares exact=False or scope='batch' but accumulates exactly"


@each
def test_resume_is_bit_exact(name: str) -> None:
    straight = trial_of(name, norm=True).run(6)
    first = trial_of(name, norm=True).run(3)
    file = io.BytesIO()
    torch.save([first.model.state_dict(), first.optimizer.state_dict(), first.recipe.state_dict()], file)
    file.seek(0)
    model, optimizer, recipe = torch.load(file, weights_only=True)
    second = trial_of(name, norm=True)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.recipe.load_state_dict(recipe)
    second.run(3, start=3)
    assert torch.equal(straight.weights(), second.weights())
    for (k, a), (_, b) in zip(straight.recipe.state_dict().items(), second.recipe.state_dict().items(), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, k


@each
def test_extra_passes_leave_statistics_alone(name: str) -> None:
    t = trial_of(name, norm=True)
    norms = [m for m in t.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    t.run(1)
    assert all(int(m.num_batches_tracked) == 1 for m in norms)
    assert all(m.track_running_stats for m in norms)


@each
def test_detach_restores_the_model(name: str) -> None:
    fresh = trial(list, trial_kind(name), norm=True)
    fresh.recipe.detach()
    t = trial_of(name, norm=True).run(2)
    t.model.eval()
    call = make_batch(trial_kind(name))
    with torch.no_grad():
        before = t.recipe.task.forward(t.model, call)
        t.recipe.detach()
        after = t.recipe.task.forward(t.model, call)
    for k in before:
        assert torch.equal(before[k], after[k]), "detaching changed what the model computes"
    assert list(t.model.state_dict()) == list(fresh.model.state_dict())
    assert [type(m) for m in t.model.modules()] == [type(m) for m in fresh.model.modules()]
    for a, b in zip(t.model.modules(), fresh.model.modules(), strict=True):
        assert len(a._forward_hooks) == len(b._forward_hooks)
        assert len(a._forward_pre_hooks) == len(b._forward_pre_hooks)
    assert [p.requires_grad for p in t.model.parameters()] == [p.requires_grad for p in fresh.model.parameters()]


@each
def test_reattaches(name: str) -> None:
    t = trial_of(name, norm=True)
    t.recipe.detach()
    t.recipe.attach(t.model, t.recipe.task if hasattr(t.recipe, "task") else None)  # type: ignore[arg-type]
    t.run(1)
    with pytest.raises(wp.RecipeError, match="attached already"):
        t.recipe.attach(t.model, t.recipe.task)


@each
def test_printed_saved_copied(name: str) -> None:
    m = make_method(name)
    names = {**vars(wp), **catalogue()}
    again = eval(repr(m), names)
    assert repr(again) == repr(m)
    assert again.settings() == m.settings()
    assert repr(pickle.loads(pickle.dumps(m))) == repr(m)
    assert repr(copy.deepcopy(m)) == repr(m)
    recipe = wp.Recipe(m, seed=4)
    for text in (recipe.to_toml(), recipe.to_json()):
        read = wp.load_recipe(text)
        assert repr(read) == repr(recipe)
    assert repr(copy.deepcopy(recipe)) == repr(recipe)


@each
def test_bfloat16_autocast_is_finite(name: str) -> None:
    t = trial_of(name, norm=True, dtype=torch.float32, autocast=torch.bfloat16).run(3)
    assert torch.isfinite(t.weights()).all()
    assert all(p.dtype == torch.float32 for p in t.model.parameters())


@each
def test_loss_scaling_changes_nothing(name: str) -> None:
    plain = trial_of(name).run(3)
    scaled = trial_of(name, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)).run(3)
    assert torch.allclose(plain.weights(), scaled.weights(), rtol=0, atol=1e-10)


@each
def test_objective_gradient_is_its_derivative(name: str) -> None:
    """Directional derivative of the logged total against the gradient; ``stops`` says when they must differ."""
    t = trial_of(name)
    t.run(2)
    state = copy.deepcopy(t.recipe.state_dict())
    params = [p for p in t.model.parameters() if p.requires_grad]
    g = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in params]
    frozen = torch.optim.SGD(params, lr=0.0)

    def total(shift: float) -> tuple[float, float]:
        t.recipe.load_state_dict(state)
        with torch.no_grad():
            kept = [p.clone() for p in params]
            for p, d in zip(params, direction, strict=True):
                p.add_(d, alpha=shift)
        terms = t.recipe.step(t.batch, frozen, progress=0.2)
        slope = sum(float((p.grad * d).sum()) for p, d in zip(params, direction, strict=True) if p.grad is not None)
        with torch.no_grad():
            for p, k in zip(params, kept, strict=True):
                p.copy_(k)
        return float(terms["total"]), slope

    eps = 1e-6
    numeric = (total(eps)[0] - total(-eps)[0]) / (2 * eps)
    analytic = total(0.0)[1]
    off = abs(numeric - analytic) / max(1.0, abs(numeric))
    if catalogue()[name].stops:
        assert off > 1e-7, f"{name} declares stops=True, but its gradient is the derivative of its objective"
    else:
        assert off < 1e-5


@each
def test_compiled_equals_eager(name: str) -> None:
    if trial_kind(name) in ("rnn", "ode"):
        pytest.skip("torch.compile runs nn.RNN and solvers eagerly")
    torch._dynamo.reset()
    eager = trial_of(name).run(2)
    compiled = trial_of(name, wrap=lambda m: torch.compile(m, backend="aot_eager")).run(2)
    assert torch.allclose(eager.weights(), compiled.weights(), rtol=0, atol=1e-12)


@each
def test_both_tiers_agree(name: str) -> None:
    """Inside somebody else's loop the update is the same as in ours."""
    ours = trial_of(name, norm=True).run(3)
    theirs = trial_of(name, norm=True, steps=10)
    optimizer = theirs.recipe.optimizer(theirs.optimizer)
    for _ in range(3):

        def closure() -> torch.Tensor:
            loss = theirs.recipe.objective(theirs.model, theirs.batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.equal(ours.weights(), theirs.weights())


@each
def test_frozen_and_tied_weights(name: str) -> None:
    t = trial_of(name, norm=True)
    first = next(p for p in t.model.parameters() if p.ndim >= 2)
    first.requires_grad_(False)
    kept = first.detach().clone()
    t.optimizer = torch.optim.SGD([p for p in t.model.parameters() if p.requires_grad], lr=0.05)
    t.run(2)
    assert torch.equal(first, kept), "a frozen weight moved"


@each
def test_settings_out_of_range_are_refused(name: str) -> None:
    checked = 0
    for field in fields_of(make_method(name)):
        low = field.metadata.get("above") if field.metadata.get("above") is not None else field.metadata.get("low")
        if low is None or low == -float("inf"):
            continue
        checked += 1
        with pytest.raises(ValueError, match=field.name):
            make_method(name, **{field.name: type(low)(low) - 1})
    with pytest.raises(TypeError):
        make_method(name, no_such_setting=1)
    if not dataclasses.is_dataclass(catalogue()[name]):
        raise AssertionError("fields are dataclass fields")


@each
def test_missing_key_is_named_at_attach(name: str) -> None:
    cls = catalogue()[name]
    wanted = [k for k in cls.reads if k in {"x", "y", "index"}]
    if not wanted:
        return
    batch = make_batch(trial_kind(name))
    batch.pop(wanted[-1])
    with pytest.raises(wp.RecipeError, match=f"needs '{wanted[-1]}'"):
        trial_of(name, example=batch)


@pytest.mark.parametrize("kind", FOREIGN)
@each
def test_models_it_was_not_written_for(name: str, kind: str) -> None:
    """BatchNorm, attention, frozen, tied and unused layers, two dtypes, two groups: it trains, or refuses to attach."""
    if trial_kind(name) == "denoiser":
        pytest.skip("no classifier's technique")
    model, batch = foreign.build(kind), foreign.batch_for(kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    recipe = wp.Recipe(make_method(name))
    try:
        recipe.attach(model, wp.Classify(classes=CLASSES), steps=10, example=batch)
        optimizer = torch.optim.AdamW(foreign.groups_of(model), lr=1e-3)
        recipe.step(batch, optimizer)
    except (wp.RecipeError, ValueError) as refused:  # a sentence, not some operator's complaint
        refusal = str(refused)
    else:
        refusal = ""
    if refusal:
        assert re.search(rf"{name}|'\w+'", refusal), refusal
        return
    terms = recipe.step(batch, optimizer)
    assert all(torch.isfinite(t) for t in terms.values())
    after = dict(recipe.finish().named_parameters())
    assert sorted(after) == sorted(before)
    for n, p in after.items():
        assert p.dtype == before[n].dtype
        assert torch.isfinite(p).all(), n
        assert p.requires_grad or torch.equal(p, before[n]), f"{n} is frozen and moved"
    if kind == "transformer":
        assert after["one.weight"] is dict(model.named_parameters(remove_duplicate=False))["two.weight"], "untied"
    assert any(not torch.equal(p, before[n]) for n, p in after.items()), "nothing was learned"


def test_every_check_ran_for_every_technique(request: pytest.FixtureRequest) -> None:
    """The suite counts itself: a filter that drops checks silently would show here."""
    items = [i for i in request.session.items if i.fspath == request.node.fspath and hasattr(i, "callspec")]
    if not any(i.name.startswith("test_card") for i in items) or request.config.getoption("-k"):
        pytest.skip("only meaningful when the whole file runs")
    per = {n: sum(i.callspec.params["name"] == n for i in items) for n in METHODS}
    assert set(per.values()) == {17 + len(FOREIGN)}, per
