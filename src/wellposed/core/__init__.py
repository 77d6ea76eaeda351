"""The training step: Task, Method, Step, Recipe."""

from .citing import implements
from .errors import NonFiniteError, NotConverged, RecipeError
from .files import load_recipe
from .method import Method, knob
from .persample import PerSample
from .recipe import Recipe
from .schedules import Constant, Cosine, Exponential, Linear, SineStages, Steps, WarmUp
from .step import Step
from .task import Task

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Method",
    "NonFiniteError",
    "NotConverged",
    "PerSample",
    "Recipe",
    "RecipeError",
    "SineStages",
    "Step",
    "Steps",
    "Task",
    "WarmUp",
    "implements",
    "knob",
    "load_recipe",
]
