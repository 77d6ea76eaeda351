"""The same update through recipe.step, recipe.objective + update, and recipe.optimizer's step(closure)."""

from __future__ import annotations

import pytest
import torch
from core_methods import (
    CLASSES,
    Activity,
    Average,
    ClipNorm,
    Consistency,
    Spread,
    SquaredWeights,
    TimesLoss,
    Watch,
    data,
    net,
    parts_of,
    sgd,
    train,
    weights,
)  # fmt: skip

import wellposed as wp

STEPS = 5


def full() -> list[wp.Method]:
    elr = wp.ELR(rows=12, classes=CLASSES)
    return [elr, SquaredWeights(), Activity(), Consistency(), wp.SAM(rho=0.1), ClipNorm(norm=0.5), Average()]


def start(*methods: wp.Method, model=None, **attach):
    model = net(dropout=0.3, norm=True) if model is None else model
    return model, wp.Recipe(*methods).attach(model, wp.Classify(CLASSES), steps=10, **attach), sgd(model)


def with_step(methods) -> torch.Tensor:
    model, recipe, optimizer = start(*methods)
    for _ in range(STEPS):
        recipe.step(data(), optimizer)
    return weights(model)


def closure_of(recipe: wp.Recipe, model: torch.nn.Module, batch=None):
    def closure() -> torch.Tensor:
        loss = recipe.objective(model, data() if batch is None else batch)
        loss.backward()
        return loss

    return closure


def test_the_closure_tier_equals_ours_bit_for_bit() -> None:
    model, recipe, inner = start(*full())
    optimizer = recipe.optimizer(inner)
    for _ in range(STEPS):
        loss = optimizer.step(closure_of(recipe, model))
    assert loss.ndim == 0
    assert torch.equal(weights(model), with_step(full()))
    assert recipe.count == STEPS


def test_the_objective_tier_equals_ours_bit_for_bit() -> None:
    """A plain loop of somebody else's: zero_grad, backward, step, then recipe.update()."""
    few = lambda: [wp.ELR(rows=12, classes=CLASSES), SquaredWeights(), Activity(), Consistency(), Average()]  # noqa: E731
    model, recipe, optimizer = start(*few())
    for _ in range(STEPS):
        optimizer.zero_grad()
        recipe.objective(model, data()).backward()
        optimizer.step()
        terms = recipe.update()
    assert set(terms) == {"task", "total", "ELR", "SquaredWeights", "Activity", "Consistency"}
    assert torch.equal(weights(model), with_step(few()))


def test_objective_refuses_what_it_cannot_do() -> None:
    model, recipe, _ = start(wp.SAM(), SquaredWeights(), ClipNorm())
    with pytest.raises(wp.RecipeError, match=r"SAM, ClipNorm acts around the gradient, which objective\(\) cannot"):
        recipe.objective(model, data())


def test_a_closure_is_needed() -> None:
    _, recipe, inner = start()
    with pytest.raises(ValueError, match="step needs a closure that computes"):
        recipe.optimizer(inner).step()


def test_a_scaler_belongs_to_our_step() -> None:
    _, recipe, inner = start(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(wp.RecipeError, match=r"scales inside recipe\.step"):
        recipe.optimizer(inner)


def test_accumulation_in_somebody_elses_loop() -> None:
    """Two objectives, each halved as trainers do, are one update of the whole batch - parameter penalties included."""
    few = lambda: [SquaredWeights(), Activity(), TimesLoss()]  # noqa: E731
    whole, _ = train(*few(), model=net(), steps=1)
    model, recipe, optimizer = start(*few(), model=net())
    for part in parts_of(data(), 6, 6):
        (recipe.objective(model, part) / 2).backward()
    optimizer.step()
    recipe.update()
    assert torch.allclose(weights(whole), weights(model), rtol=0, atol=1e-14)
    assert recipe.count == 1


def test_accumulation_inside_a_closure() -> None:
    methods = lambda: [SquaredWeights(), Activity(), wp.SAM(rho=0.1), ClipNorm()]  # noqa: E731
    whole, _ = train(*methods(), model=net(), steps=3)
    model, recipe, inner = start(*methods(), model=net())
    optimizer = recipe.optimizer(inner)

    def closure() -> None:
        for part in parts_of(data(), 6, 6):
            (recipe.objective(model, part) / 2).backward()

    for _ in range(3):
        optimizer.step(closure)
    assert torch.allclose(weights(whole), weights(model), rtol=0, atol=1e-13)


def test_noise_of_a_closure_repeats_in_every_pass() -> None:
    watch = Watch()
    model, recipe, inner = start(watch, wp.SAM(rho=1e-12), model=net(dropout=0.5))
    optimizer = recipe.optimizer(inner)
    for _ in range(2):
        optimizer.step(closure_of(recipe, model))
    assert [(c, m, f) for c, m, f, _ in watch.seen] == [(0, 0, True), (0, 0, False), (1, 0, True), (1, 0, False)]
    logits = [z for *_, z in watch.seen]
    assert torch.allclose(logits[0], logits[1], atol=1e-9)
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)


def test_progress_may_be_said_in_objective() -> None:
    model = net()
    recipe = wp.Recipe(SquaredWeights(strength=wp.Linear(0.0, 1.0)), wp.SAM()).attach(model, wp.Classify(CLASSES))
    optimizer = recipe.optimizer(sgd(model, lr=0.0))
    found = []
    for progress in (0.5, 1.0):

        def closure(progress: float = progress) -> None:
            recipe.objective(model, data(), progress=progress).backward()
            found.append(recipe._run.current.terms["SquaredWeights"].item())

        optimizer.step(closure)
    assert found[-1] == pytest.approx(2 * found[0])


def test_learning_rate_schedulers_work_on_the_wrapped_optimizer() -> None:
    def run(wrapped: bool) -> tuple[torch.Tensor, list[float]]:
        model, recipe, inner = start(wp.SAM(rho=0.1), SquaredWeights())
        optimizer = recipe.optimizer(inner) if wrapped else inner
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS + 1)
        rates = []
        for _ in range(STEPS):
            if wrapped:
                optimizer.step(closure_of(recipe, model))
            else:
                recipe.step(data(), inner)
            scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        return weights(model), rates

    (ours, rates), (theirs, theirs_rates) = run(False), run(True)
    assert rates == theirs_rates
    assert len(set(rates)) == STEPS
    assert torch.equal(ours, theirs)


def test_the_wrapped_optimizer_saves_and_loads_as_the_inner_one() -> None:
    model, recipe, inner = start(*full())
    optimizer = recipe.optimizer(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    for _ in range(2):
        optimizer.step(closure_of(recipe, model))
    saved = (model.state_dict(), optimizer.state_dict(), recipe.state_dict())
    saved = torch.utils._pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, saved)
    other, again, fresh = start(*full())
    resumed = again.optimizer(fresh)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    for _ in range(3):
        optimizer.step(closure_of(recipe, model))
        resumed.step(closure_of(again, other))
    assert torch.equal(weights(model), weights(other))
    extra = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert inner.param_groups[1]["lr"] == 0.5
    assert "SGD" in repr(inner)
    assert repr(optimizer).startswith("RecipeOptimizer")


def test_zero_grad_of_the_wrapped_optimizer() -> None:
    model, recipe, inner = start()
    optimizer = recipe.optimizer(inner)
    recipe.objective(model, data()).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_module_that_owns_its_loop() -> None:
    """Manual optimisation in the manner of training frameworks: training_step gets its optimizer from outside."""

    class Lit:
        def __init__(self) -> None:
            self.net = net(dropout=0.3, norm=True)
            self.recipe = wp.Recipe(*full()).attach(self.net, wp.Classify(CLASSES), steps=10)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.recipe.optimizer(sgd(self.net))

        def training_step(self, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> torch.Tensor:
            return optimizer.step(closure_of(self.recipe, self.net, batch))

    lit = Lit()
    optimizer = lit.configure_optimizers()
    for _ in range(STEPS):
        lit.training_step(data(), optimizer)
    assert torch.equal(weights(lit.net), with_step(full()))


def test_the_tier_is_computed_from_the_slots() -> None:
    assert SquaredWeights.tier() == wp.ELR.tier() == "objective"
    assert wp.SAM.tier() == Average.tier() == "optimizer"
    assert wp.SAM.slots() == ("gradient",)
    assert Average.slots() == ("setup", "update")


def test_an_error_in_a_closure_leaves_nothing_behind() -> None:
    model, recipe, inner = start(wp.SAM(), SquaredWeights(), model=net())
    optimizer = recipe.optimizer(inner)

    def broken() -> None:
        recipe.objective(model, data())
        raise KeyError("loader")

    with pytest.raises(KeyError, match="loader"):
        optimizer.step(broken)
    optimizer.step(closure_of(recipe, model))
    twin, _ = train(wp.SAM(), SquaredWeights(), steps=1)
    assert torch.equal(weights(model), weights(twin))


def test_coupled_terms_are_exact_alone_and_warn_once_over_microbatches() -> None:
    model, recipe, optimizer = start(Spread(), Spread(), model=net())
    recipe.step(data(), optimizer)
    with pytest.warns(UserWarning, match="couples the samples of a batch") as caught:  # noqa: PT031
        for _ in range(3):
            recipe.step(parts_of(data(), 6, 6), optimizer)
    assert [str(w.message).split()[0] for w in caught] == ["Spread.1", "Spread.2"]
    assert caught[0].filename == __file__

    model, recipe, optimizer = start(Spread(), model=net())
    with pytest.warns(UserWarning, match="couples the samples of a batch") as caught:  # noqa: PT031
        for _ in range(2):
            for part in parts_of(data(), 6, 6):
                (recipe.objective(model, part) / 2).backward()
            recipe.update()
    assert len(caught) == 1
