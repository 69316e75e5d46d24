"""`simulate`: responses of a model that is stated rather than fitted, for a given design."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.draws import ResponseSource, check_seed
from jaxmixed.encoding import plan_of
from jaxmixed.errors import DataError
from jaxmixed.formula import parse
from jaxmixed.frame import ModelFrame, build_frame
from jaxmixed.ingest import read_columns
from jaxmixed.parameters import fitted_parameters, stated_parameters
from jaxmixed.predict import linear_predictor
from jaxmixed.relationship import Known
from jaxmixed.replicates import replicate_table, term_source
from jaxmixed.residual_refusals import refuse_residual_structure
from jaxmixed.results import MixedResults
from jaxmixed.terms import Column
from jaxmixed.weighted_samples import refuse_weighted_sample


class SpecifiedModel(NamedTuple):
    """A model with all its parameters, on a design.

    Attributes
    ----------
    frame : ModelFrame
        The design; its ``y`` holds the expected response, the fixed part with the offset.
    beta : (p,) array
        Coefficients in the order of ``frame.x_names``.
    covariances : tuple of (q, q) arrays
        Of the effects of one level, in the units of the response, in the order of ``frame.groups``.
    sigma : float
        Residual standard deviation of a row of weight 1.
    """

    frame: ModelFrame
    beta: np.ndarray
    covariances: tuple[np.ndarray, ...]
    sigma: float

    @property
    def source(self) -> ResponseSource:
        """The model as a source of responses."""
        terms = tuple(
            term_source(group, cov) for group, cov in zip(self.frame.groups, self.covariances, strict=True)
        )
        return ResponseSource(self.frame.y, terms, self.sigma, self.frame.weights)


def simulate(
    formula: str,
    data: Any,
    params: Mapping[str, Any] | MixedResults,
    n: int = 1,
    seed: int | None = None,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> pd.DataFrame:
    r"""Draw responses of a mixed model with given parameters, :math:`y = X\beta + \sum_k Z_k b_k + e`.

    Parameters
    ----------
    formula : str
        As for `mixed`. The response need not be in the data, and may be left out: ``"~ x + (1 | school)"``.
        The values drawn are those of the formula's left side, e.g. of ``log(y)``.
    data : DataFrame or mapping
        The design: covariates, groups, weights, offsets. Never modified.
    params : mapping or MixedResults
        ``"beta"``: coefficients by name, or in the order of the design's columns. ``"random"``: by group, the
        standard deviation of a single effect; a covariance matrix; or ``{"sd": [...], "corr": r}`` with a
        correlation matrix or one correlation of all pairs (none: independent effects); a list of these where
        a group has several terms. ``"sigma"``: residual standard deviation. Or a fit: its estimates, and
        the known relationships between its levels.
    n : int
        Number of responses.
    seed : int, optional
        Non-negative. Response i of a seed is the same whatever ``n``. None takes a fresh seed, which
        ``attrs["seed"]`` of the result tells.
    weights : str or array, optional
        Precision weights: ``Var(e_i) = sigma**2 / w_i``.
    offset : str or array, optional
        Known part of the mean.
    missing : {"drop", "raise"}
        What to do with rows in which a used column is missing.
    contrasts : mapping, optional
        Contrast by categorical column, as for `mixed`.
    functions : mapping, optional
        Your own functions of one column, by the name that the formula uses.

    Returns
    -------
    pandas.DataFrame
        Columns ``sim_1``, ..., a row for each row used, with the index of the data.

    Raises
    ------
    FormulaError, DesignError
        As for `mixed`: a design that could not be fitted is refused.
    DataError
        Naming the column, coefficient or group at fault, and those that there are.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> design = {"dose": [0, 1, 2] * 20, "rat": [i // 3 for i in range(60)]}
    >>> params = {
    ...     "beta": {"(Intercept)": 10, "dose": 2},
    ...     "random": {"rat": {"sd": [3, 1], "corr": -0.2}},
    ...     "sigma": 1.5,
    ... }
    >>> y = jm.simulate("y ~ dose + (dose | rat)", design, params, n=1000, seed=1)
    >>> y.shape, round(float(y.iloc[0::3].to_numpy().std()), 1)  # sqrt(9 + 1.5**2) = 3.4
    ((60, 1000), 3.4)
    """
    if seed is not None:
        check_seed(seed)
    model = specified_model(
        formula,
        data,
        params,
        weights=weights,
        offset=offset,
        missing=missing,
        contrasts=contrasts,
        functions=functions,
    )
    return replicate_table(model.source, model.frame.index, n, seed)


def specified_model(
    formula: str,
    data: Any,
    params: Mapping[str, Any] | MixedResults,
    *,
    weights: Any = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> SpecifiedModel:
    """Bring a formula, a design without a response, and parameters together; arguments as for `simulate`.

    Examples
    --------
    >>> design = {"x": [0.0, 1.0, 2.0] * 4, "g": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]}
    >>> stated = {"beta": [1, 2], "random": {"g": 0.5}, "sigma": 1}
    >>> model = specified_model("y ~ x + (1 | g)", design, stated)
    >>> model.frame.y[:3].tolist(), model.covariances[0].tolist()
    ([1.0, 3.0, 5.0], [[0.25]])
    """
    for name, given in (("contrasts", contrasts), ("functions", functions)):
        if given is not None and not isinstance(given, Mapping):
            raise DataError(f"{name}={given!r} must be a mapping by name")
    related = {}
    if isinstance(params, MixedResults):
        refuse_weighted_sample(params.estimates, "simulate()", "each row of the design is drawn once")
        refuse_residual_structure(
            params.estimates,
            "simulate() draws independent residuals",
            "fit.simulate() draws responses of the fit, for the rows it was fitted to",
        )
        known = ((group.label, group.relationship) for group in params.frame.groups)
        related = {label: Known(own.matrix, own.levels) for label, own in known if own is not None}
    frame = design_frame(
        formula,
        data,
        weights=weights,
        offset=offset,
        missing=missing,
        contrasts=contrasts,
        functions=functions,
        relationships=related,
    )
    if isinstance(params, MixedResults):
        parameters = fitted_parameters(frame, params.frame.x_names, params.estimates)
    else:
        parameters = stated_parameters(frame, params)
    mean = linear_predictor(frame.X, parameters.beta, frame.offset)
    mean.flags.writeable = False
    return SpecifiedModel(replace(frame, y=mean), parameters.beta, parameters.covariances, parameters.sigma)


def design_frame(formula: str, data: Any, *, weights: Any, offset: Any, **options: Any) -> ModelFrame:
    """Model frame of data that need not hold the response; its ``y`` holds row numbers instead.

    `build_frame` is given a column of row numbers in the response's place, so that everything else is read,
    coded and checked as for a fit.
    """
    parsed = parse(_with_response(formula), frozenset(options["functions"] or ()))
    extra = tuple(name for name in (weights, offset) if isinstance(name, str))
    right = replace(parsed, response=Column(""))
    names = tuple(dict.fromkeys((*(name for name in plan_of(right).columns if name), *extra)))
    placeholder = parsed.response.columns[0] if isinstance(parsed.response, Column) else parsed.response.label
    while placeholder in names:
        placeholder += "_"
    frame = build_frame(
        replace(parsed, response=Column(placeholder)),
        _with_row_numbers(data, names, placeholder),
        weights=weights,
        offset=offset,
        **options,
    )
    return replace(
        frame,
        formula=parsed,
        encoding=replace(frame.encoding, formula=parsed),
        response_name=parsed.response.label,
    )


def _with_response(formula: Any) -> Any:
    """The formula, with a response that it does not otherwise name if it begins with the tilde."""
    if not isinstance(formula, str) or not formula.lstrip().startswith("~"):
        return formula
    name = "simulated"
    while name in formula:
        name += "_"
    return f"{name} {formula.lstrip()}"


def _with_row_numbers(data: Any, names: tuple[str, ...], placeholder: str) -> Any:
    """The named columns of a table and, as one more, the number of each row."""
    num_rows = read_columns(data, names).num_rows  # first, so that an error lists the user's own columns
    if isinstance(data, pd.DataFrame):
        return data[list(names)].assign(**{placeholder: np.arange(num_rows)})
    if isinstance(data, np.ndarray):
        return {**{name: data[name] for name in names}, placeholder: np.arange(len(data))}
    if isinstance(data, Mapping):
        if not names:  # an intercept alone: any column tells how many rows there are
            num_rows = read_columns(data, list(data)[:1]).num_rows
        return {**{name: data[name] for name in names}, placeholder: np.arange(num_rows)}
    from narwhals.stable import v1 as narwhals

    frame = narwhals.from_native(data, eager_only=True)
    number = "row"
    while number in (*frame.columns, placeholder):
        number += "_"
    numbered = frame.with_row_index(number).drop([placeholder], strict=False)
    return numbered.rename({number: placeholder}).to_native()
