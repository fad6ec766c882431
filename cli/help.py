"""Help of commands where Python has left out their docstrings, as `python -OO` does."""

import ast
import inspect
from collections.abc import Callable
from functools import cache


def documentation(function: Callable) -> str | None:
    """The docstring of a function of a module, if need be out of the source; None if that is not there either."""
    function = inspect.unwrap(function)
    if function.__doc__ is not None:
        return function.__doc__
    module = inspect.getmodule(function)
    try:
        definitions = {} if module is None else _definitions(inspect.getsource(module))
    except OSError:
        return None
    return definitions.get(function.__name__)


@cache
def _definitions(source: str) -> dict[str, str | None]:
    """The docstrings of the functions of a module, by name."""
    return {part.name: ast.get_docstring(part) for part in ast.parse(source).body if isinstance(part, ast.FunctionDef)}
