"""Objects that the user names as `package.module:function`."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..errors import BadInput


def resolve(spec: str, what: str) -> Callable[..., Any]:
    """Import the callable that `spec` names, the current directory included; `what` it is for, in messages.

    Raises `BadInput` when module or function is missing, the import fails, or the object cannot be called.
    """
    module_name, _, path = spec.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise BadInput(f"{what} '{spec}' must name a module, not a file: write {dotted}:{path or 'function'}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadInput(f"{what} '{spec}': there is no module '{error.name}' here or installed") from None
        raise BadInput(f"{what} '{spec}': importing {module_name} needs '{error.name}', which is missing") from error
    except Exception as error:
        raise BadInput(f"{what} '{spec}': importing {module_name} fails with {describe(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            names = {key.lower(): key for key in dir(found) if not key.startswith("_")}
            close = difflib.get_close_matches(name.lower(), names, 1)
            guess = f"; did you mean '{names[close[0]]}'?" if close else ""
            raise BadInput(f"{what} '{spec}': {module_name} has no '{name}'{guess}")
        found = getattr(found, name)
    if not callable(found):
        raise BadInput(f"{what} '{spec}' is {type(found).__name__}, not a function that can be called")
    return found


def describe(error: BaseException) -> str:
    """The type and message of an exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
