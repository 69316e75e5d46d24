"""Functions that are imported when they are first called.

The methods of a fit call functions of a hundred modules, and a fit with its table needs half of them. Where a
method calls a function of the others, its module has the import for the type checker and this for the rest::

    if TYPE_CHECKING:
        from jaxmixed.anova import anova_table
    else:
        anova_table = later("anova", "anova_table")
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of another module of the package, which is imported at the first call.

    Examples
    --------
    >>> listed = later("errors", "listed")
    >>> listed(["x", "z"])
    "'x', 'z'"
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return vars(import_module(f"jaxmixed.{module}"))[name](*args, **kwargs)

    return call
