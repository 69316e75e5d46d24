"""Gaussian mixed models (multilevel, hierarchical linear models) as differentiable, compiled JAX.

Names are loaded when they are first used, so that ``import jaxmixed`` itself takes a few milliseconds and
imports neither JAX nor pandas.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "mixed": "model",
    "MixedResults": "results",
    "MixedModelRegressor": "regressor",
    "known": "relationship",
    "Arrays": "model_arrays",
    "arrays": "model_arrays",
    "Solution": "solution",
    "solve": "solution",
    "fit_many": "many",
    "ManyResults": "many_results",
    "MarginalMeans": "marginal_means",
    "WithinCorrelation": "wcorrelation",
    "compare": "comparison",
    "lrtest": "comparison",
    "power": "power_analysis",
    "PowerResult": "power_results",
    "simulate": "simulation",
    "from_stata": "stata_notation",
    "stata": "stata_commands",
    "StataOutput": "stata_commands",
    "study": "studies",
    "ConvergenceWarning": "errors",
    "DataError": "errors",
    "DesignError": "errors",
    "FormulaError": "errors",
    "JaxMixedError": "errors",
    "JaxMixedWarning": "errors",
    "PrecisionError": "errors",
    "RankDeficientWarning": "errors",
    "SingularFitWarning": "errors",
    "StataError": "errors",
}
_MODULES = (
    "covariance",
    "crossproducts",
    "datasets",
    "effects",
    "fitting",
    "formula",
    "frame",
    "kernels",
    "likelihood",
    "nn",
    "optim",
    "precision",
    "residuals",
    "statistics",
)

if TYPE_CHECKING:
    from jaxmixed import (
        covariance,
        crossproducts,
        datasets,
        effects,
        fitting,
        formula,
        frame,
        kernels,
        likelihood,
        nn,
        optim,
        precision,
        residuals,
        statistics,
    )
    from jaxmixed.comparison import compare, lrtest
    from jaxmixed.errors import (
        ConvergenceWarning,
        DataError,
        DesignError,
        FormulaError,
        JaxMixedError,
        JaxMixedWarning,
        PrecisionError,
        RankDeficientWarning,
        SingularFitWarning,
        StataError,
    )
    from jaxmixed.many import fit_many
    from jaxmixed.many_results import ManyResults
    from jaxmixed.marginal_means import MarginalMeans
    from jaxmixed.model import mixed
    from jaxmixed.model_arrays import Arrays, arrays
    from jaxmixed.power_analysis import power
    from jaxmixed.power_results import PowerResult
    from jaxmixed.regressor import MixedModelRegressor
    from jaxmixed.relationship import known
    from jaxmixed.results import MixedResults
    from jaxmixed.simulation import simulate
    from jaxmixed.solution import Solution, solve
    from jaxmixed.stata_commands import StataOutput, stata
    from jaxmixed.stata_notation import from_stata
    from jaxmixed.studies import study
    from jaxmixed.wcorrelation import WithinCorrelation

__all__ = [
    "Arrays",
    "ConvergenceWarning",
    "DataError",
    "DesignError",
    "FormulaError",
    "JaxMixedError",
    "JaxMixedWarning",
    "ManyResults",
    "MarginalMeans",
    "MixedModelRegressor",
    "MixedResults",
    "PowerResult",
    "PrecisionError",
    "RankDeficientWarning",
    "SingularFitWarning",
    "Solution",
    "StataError",
    "StataOutput",
    "WithinCorrelation",
    "arrays",
    "compare",
    "covariance",
    "crossproducts",
    "datasets",
    "effects",
    "fit_many",
    "fitting",
    "formula",
    "frame",
    "from_stata",
    "kernels",
    "known",
    "likelihood",
    "lrtest",
    "mixed",
    "nn",
    "optim",
    "power",
    "precision",
    "residuals",
    "simulate",
    "solve",
    "stata",
    "statistics",
    "study",
]


def _load(module: str) -> ModuleType:
    """Import a module of the package, leaving NumPy's global random state as it was."""
    if "jax" in sys.modules:
        return import_module(f"jaxmixed.{module}")
    import numpy as np  # jax needs it anyway, and draws from its global generator when first imported

    state = np.random.get_state()
    try:
        return import_module(f"jaxmixed.{module}")
    finally:
        np.random.set_state(state)


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name in _MODULES:
        return _load(name)
    if name in _HOMES:
        value = vars(_load(_HOMES[name]))[name]
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxmixed' has no attribute {name!r}; its names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
