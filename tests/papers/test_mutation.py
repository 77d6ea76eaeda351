"""Mutations: what is changed, for whom, and that everything is as before afterwards."""

import functools
import sys
from collections import namedtuple
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from wellposed import Recipe
from wellposed.objectives.elr import ELR
from wellposed.papers.mutation import Mutation, MutationError, fixed, negated, nothing, zero
from wellposed.tasks import Classify


def twice(x: Tensor, factor: float = 2.0) -> Tensor:
    return factor * x


class Toy:
    """A part with every sort of attribute."""

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength

    def value(self, x: float) -> float:
        return self.strength * x

    @staticmethod
    def plain(x: float) -> float:
        return x

    @classmethod
    def named(cls, x: float) -> tuple[str, float]:
        return cls.__name__, x

    @property
    def size(self) -> float:
        return self.strength


class Heir(Toy):
    """Inherits all of it."""


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Two modules of the library: one defines the parts above, one imports a function of it by another name."""
    home, user = ModuleType("wellposed.toy"), ModuleType("wellposed.papers.claims.toy")
    vars(home).update(twice=twice, Toy=Toy, Heir=Heir, number=3)
    vars(user).update(borrowed=twice)
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setitem(sys.modules, user.__name__, user)
    yield home, user
    assert (home.twice, user.borrowed, home.Toy) == (twice, twice, Toy)


def mutation(name: str, by: Any) -> Mutation:
    return Mutation(words="damage", target=f"wellposed.toy:{name}", by=by)


def test_a_function_changes_in_every_module_that_holds_it(library: tuple[Any, Any]) -> None:
    home, user = library
    with mutation("twice", negated).applied():
        assert float(home.twice(torch.tensor(1.0))) == float(user.borrowed(torch.tensor(1.0))) == -2
        assert home.twice.__name__ == "twice"
    assert float(user.borrowed(torch.tensor(1.0))) == 2


def test_a_module_first_imported_meanwhile_is_put_right_too(library: tuple[Any, Any]) -> None:
    home, user = library
    with mutation("twice", negated).applied():
        user.late = home.twice
    assert user.late is twice


def test_what_was_cached_is_forgotten(library: tuple[Any, Any]) -> None:
    home, user = library
    user.table = functools.cache(lambda: float(home.twice(torch.tensor(1.0))))
    assert user.table() == 2
    with mutation("twice", negated).applied():
        assert user.table() == -2
    assert user.table() == 2


@pytest.mark.parametrize(
    ("name", "look", "before", "after"),
    [
        ("Toy.value", lambda toy: toy.value(2.0), 2.0, -2.0),
        ("Toy.plain", lambda toy: toy.plain(2.0), 2.0, -2.0),
        ("Toy.named", lambda toy: toy.named(2.0), ("Toy", 2.0), ("Toy", -2.0)),
        ("Toy.size", lambda toy: toy.size, 1.0, -1.0),
    ],
)
def test_every_sort_of_method(name: str, look: Any, before: Any, after: Any) -> None:
    raw = dict(vars(Toy))
    with mutation(name, negated).applied():
        assert look(Toy()) == after
    assert look(Toy()) == before
    assert dict(vars(Toy)) == raw


def test_a_class_stands_for_its_constructor() -> None:
    with mutation("Toy", fixed(strength=0.0)).applied():
        assert Toy(5.0).strength == Toy(strength=5.0).strength == Toy().strength == 0
        assert isinstance(Toy(), Toy)
    assert Toy(5.0).strength == 5


def test_what_is_inherited_is_changed_in_the_heir_alone() -> None:
    with mutation("Heir.value", zero).applied():
        assert (Heir().value(2.0), Toy().value(2.0)) == (0, 2)
    assert Heir().value(2.0) == 2
    assert "value" not in vars(Heir)


@pytest.mark.parametrize("name", ["twice", "Toy.value", "Heir.value", "Toy"])
def test_everything_is_restored_after_an_exception(library: tuple[Any, Any], name: str) -> None:
    before = dict(vars(Toy)), dict(vars(Heir))
    by = fixed(strength=0.0) if name == "Toy" else negated
    with pytest.raises(RuntimeError, match="inside"), mutation(name, by).applied():
        raise RuntimeError("inside")
    assert (dict(vars(Toy)), dict(vars(Heir))) == before


def test_ready_made_changes() -> None:
    pair = namedtuple("pair", "a b")
    one = torch.ones(2)
    for made, sign in ((negated, -1), (zero, 0)):
        assert torch.equal(made(lambda: one)(), sign * one)
        assert made(lambda: {"a": 1.0, "b": [2, (3,)], "c": None})() == {
            "a": sign, "b": [2 * sign, (3 * sign,)], "c": None,
        }  # fmt: skip
        assert made(lambda: pair(1, 2))() == pair(sign, 2 * sign)
    assert nothing(twice)(one, 5.0) is one
    assert nothing(twice)("step") is None
    assert torch.equal(fixed(factor=0.0)(twice)(one, 5.0), 0 * one)

    def loose(x: int, **rest: int) -> int:
        return x + rest["y"]

    assert fixed(y=5)(loose)(1, y=2) == 6


def test_a_method_of_the_library_loses_its_effect() -> None:
    def gradient(strength: float) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        recipe = Recipe(ELR(rows=4, classes=2, strength=strength)).attach(model, Classify(classes=2))
        batch = {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 0, 1]), "index": torch.arange(4)}
        (found,) = torch.autograd.grad(recipe.objective(model, batch), model.weight)
        return found

    plain, regularised = gradient(0.0), gradient(3.0)
    assert not torch.equal(plain, regularised)
    home = "wellposed.objectives.elr:ELR"
    for target, by in [(home, fixed(strength=0.0)), (f"{home}.penalty", zero), (f"{home}.penalty", nothing)]:
        with Mutation(words="off", target=target, by=by).applied():
            torch.testing.assert_close(gradient(3.0), plain)
    with Mutation(words="turned", target=f"{home}.penalty", by=negated).applied():
        torch.testing.assert_close(gradient(3.0) - plain, plain - regularised)
    assert torch.equal(gradient(3.0), regularised)


@pytest.mark.parametrize("target", ["wellposed.toy:nobody", "wellposed.nowhere:x", "wellposed.toy:number"])
def test_a_target_that_is_not_there_is_an_error(target: str) -> None:
    with pytest.raises(MutationError, match=target), Mutation("damage", target, zero).applied():
        pass


def test_an_argument_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MutationError, match="no argument weight"), mutation("Toy", fixed(weight=0.0)).applied():
        pass


@pytest.mark.parametrize("target", ["wellposed.papers.arenas:fit", "torch.nn:Linear", "wellposed"])
def test_claims_and_strangers_are_not_mutated(target: str) -> None:
    with pytest.raises(ValueError, match="changes a technique"):
        Mutation(words="damage", target=target, by=zero)
