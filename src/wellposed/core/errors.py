"""Errors of the library's own: of a recipe, of a training step, of a solver."""


class RecipeError(ValueError):
    """A recipe that cannot work as written; the message says the mend."""


class NonFiniteError(ArithmeticError):
    """A term of the objective became NaN or infinite.

    Attributes:
        step: count of updates finished before the failing one.
        term: name of the term (``"task"`` or a method's name in the recipe).
    """

    def __init__(self, step: int, term: str, value: float) -> None:
        super().__init__(
            f"step {step}: the term '{term}' is {value}; nothing was updated. "
            "Look at the inputs of this step, the learning rate, and the strength of that term."
        )
        self.step, self.term, self.value = step, term, value

    def __reduce__(self) -> tuple[type, tuple[int, str, float]]:
        return type(self), (self.step, self.term, self.value)


class NotConverged(RuntimeError):
    """A solver ended further from the solution than was asked for."""
