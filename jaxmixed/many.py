"""`fit_many`: one formula, many models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmixed import model, optim, relationship, schedule
from jaxmixed.crossproducts import Reduction
from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.formula import parse
from jaxmixed.frame import ModelFrame, build_frame
from jaxmixed.grouping import code_group
from jaxmixed.ingest import read_columns
from jaxmixed.many_fits import ModelJob, response_job, whole_design
from jaxmixed.many_results import ManyResults
from jaxmixed.many_tables import check_ddf
from jaxmixed.missingness import Outcome, ResponseFits, SeparateFits, any_response, signature
from jaxmixed.response_columns import response_columns
from jaxmixed.simulation import design_frame
from jaxmixed.streaming import ManyFile
from jaxmixed.subdesigns import WholeDesign
from jaxmixed.terms import Column

SEPARATE_BLOCK = 1024
"""Models with designs of their own in a block: enough to stand side by side, and few to hold."""


def fit_many(
    formula: str,
    data: Any,
    responses: Any = None,
    *,
    by: str | Sequence[str] | None = None,
    row_weights: Any = None,
    method: str = "reml",
    covariance: Any = None,
    weights: Any = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    max_iterations: int = optim.MAX_ITERATIONS,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
    block: int | None = None,
    out: str | Path | None = None,
    ddf: str = "none",
) -> ManyResults | ManyFile:
    """Fit one formula to many responses, to every group of the data, or under many sets of row weights.

    Exactly one of `responses`, `by` and `row_weights` says what the models are. A model that cannot be fitted
    keeps its row in every table, of NaN, and `ManyResults.reason` says why; the others do not notice.

    Parameters
    ----------
    formula : str
        lme4's notation. With `responses` without a left side, ``"~ x + (1 | school)"``, or with one of the
        responses' names there; otherwise as for `mixed`.
    data : DataFrame or mapping
        The design: covariates, groups, weights, offsets (and the response, for `by` and `row_weights`).
    responses : list of str, array, data frame or path, optional
        One model per response: names of columns of `data`; an array, memory map, data frame or ``.npy`` file
        with a row for each row of the data and a column per response; or a Parquet file, all of whose columns
        are responses. A response with missing values is fitted to the rows that it has, as `mixed` would;
        factors keep the levels of the whole data.
    by : str or list of str, optional
        One model per group of rows with the same value of these columns. Factors, contrasts and transforms
        are those of the whole data, so that coefficients mean the same everywhere; columns that are zero or
        redundant in a group have NaN there.
    row_weights : array or data frame, optional
        One model per column: how often each row counts (non-negative, e.g. of bootstrap samples; need not be
        whole). A row of weight w counts as w rows and one of weight 0 is left out, so that the number of
        observations is the sum of the weights; `weights` are precisions beside it.
    method : {"reml", "ml"}
        Restricted or full maximum likelihood.
    covariance, weights, offset, missing, contrasts, functions, max_iterations
        As for `mixed`. ``missing`` concerns the columns of the design.
    devices : int or sequence of jax.Device, optional
        How many workers, or which devices; by default all accelerators, or all cores.
    mesh : jax.sharding.Mesh, optional
        All devices of a mesh, possibly of several processes (`jax.distributed`).
    progress : bool, optional
        Whether to show a progress bar; by default on a terminal.
    block : int, optional
        Models fitted at a time; by default as many as memory allows. No estimate depends on it.
    out : str or Path, optional
        A Parquet file to write the estimates to, block by block, instead of holding them: one row per model,
        with the columns of `ManyResults.to_frame`.
    ddf : {"none", "satterthwaite", "residual"}
        Denominator degrees of freedom of the result's tests and intervals where these are not asked for
        others; not with `out`, which writes no tests.

    Returns
    -------
    ManyResults
        Or, with `out`, a ManyFile, which says what was written.

    Raises
    ------
    FormulaError, DataError, DesignError
        As for `mixed`, where no model could be fitted.

    Warns
    -----
    ConvergenceWarning
        Once, if models failed.
    InterruptedWarning
        On Ctrl-C; the models finished so far are kept.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> Y = jm.mixed("Reaction ~ Days + (Days | Subject)", data).simulate(100, seed=1)
    >>> many = jm.fit_many("~ Days + (Days | Subject)", data, Y)
    >>> many.coef_table("Days").shape
    (100, 8)
    >>> pig = jm.datasets.load("pig").assign(litter=lambda d: d["id"].cat.codes % 4)
    >>> jm.fit_many("weight ~ week + (1 | id)", pig, by="litter").params["week"].round(2).tolist()
    [5.93, 6.09, 6.55, 6.27]
    """
    _check_what(responses, by, row_weights)
    if method not in ("reml", "ml"):
        raise DesignError(f"method={method!r} is not known; choose 'reml' or 'ml'.")
    check_ddf(ddf)
    if out is not None and ddf != "none":
        raise DataError(f"out= writes estimates and no tests, so ddf={ddf!r} has nothing to say there")
    covariance, relationships = relationship.separate(covariance)
    model.check_iterations(max_iterations)
    model.check_arguments(covariance, contrasts, functions)
    crew = schedule.assemble(devices, mesh)
    options: dict[str, Any] = {"missing": missing, "contrasts": contrasts, "functions": functions}
    options |= {"weights": weights, "offset": offset, "relationships": relationships}
    options["covariance"] = covariance
    fitting = {"method": method, "max_evaluations": max_iterations}
    if responses is not None:
        job = _of_responses(formula, data, responses, covariance, options, fitting)
    elif by is not None:
        job = _of_groups(formula, data, by, covariance, options, fitting)
    else:
        job = _of_row_weights(formula, data, row_weights, covariance, options, fitting)
    return job.run(crew, progress, block, out, ddf)


def _check_what(responses: Any, by: Any, row_weights: Any) -> None:
    """Refuse none, or several, of the ways to say what the models are."""
    given = {"responses": responses, "by": by, "row_weights": row_weights}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise DataError(
            "fit_many() needs responses=, by= or row_weights= to know what its models are"
            if not named
            else f"fit_many() takes one of responses=, by= and row_weights=, not {' and '.join(named)}"
        )


def _design(frame: ModelFrame, covariance: Any) -> WholeDesign:
    """The design of a frame, its terms with the structures asked for."""
    model.check_magnitudes(frame)
    groupings, terms, labels = model.terms_of(frame.groups, model.structures_of(frame.groups, covariance))
    return whole_design(frame, groupings, terms, labels)


def _without_response(formula: Any, columns: Sequence[Any], functions: Any) -> Any:
    """The formula, checked: `responses` supplies the left side."""
    if not isinstance(formula, str) or formula.lstrip().startswith("~"):
        return formula
    parsed = parse(formula, frozenset(functions or ()))
    own = parsed.response
    if isinstance(own, Column) and own.name in columns:
        return formula
    right = formula.partition("~")[2].strip()
    raise FormulaError(
        f"responses= supplies the response, and {own.label!r} on the formula's left side is none of its "
        f'columns; write "~ {right}"'
        + ("" if isinstance(own, Column) else ", and transform the responses yourself")
    )


def _of_responses(
    formula: str, data: Any, responses: Any, covariance: Any, options: dict[str, Any], fitting: dict[str, Any]
) -> ModelJob:
    names = responses if isinstance(responses, list | tuple) else getattr(responses, "columns", ())
    checked = _without_response(formula, list(names), options["functions"])
    frame = design_frame(checked, data, **options)
    columns = response_columns(responses, frame.index, frame.kept, data)
    design = _design(frame, covariance)
    fits = ResponseFits(design, design.reduce(any_response(len(frame.X))), **fitting)
    return response_job(frame, columns, fits, frame.offset)


def _of_groups(
    formula: str,
    data: Any,
    by: str | Sequence[str],
    covariance: Any,
    options: dict[str, Any],
    fitting: dict[str, Any],
) -> ModelJob:
    columns = (by,) if isinstance(by, str) else tuple(by) if isinstance(by, list | tuple) else ()
    if not columns or not all(isinstance(name, str) for name in columns):
        raise DataError(f"by={by!r} must be the name of a column, or a list of names")
    table = read_columns(data, columns)
    frame = build_frame(formula, data, **options)
    known = np.ones(table.num_rows, dtype=bool)
    for column in table.columns.values():
        if column.missing is not None:
            known &= ~column.missing
    if options["missing"] == "raise" and not known.all():
        raise DataError(f"by= is missing in {np.count_nonzero(~known):,} of {len(known):,} rows")
    used = frame.kept & known
    if not used.any():
        raise DataError(f"by= ({', '.join(map(repr, columns))}) is missing in every row used")
    codes, coding = code_group(columns, table, used)
    rows = np.flatnonzero(known[frame.kept])
    members = np.split(rows[np.argsort(codes, kind="stable")], np.cumsum(np.bincount(codes))[:-1])
    separate = SeparateFits(_design(frame, covariance), **fitting)
    y = frame.y_less_offset

    def work(first: int, last: int) -> Outcome:
        found, details = separate.fit([(y[own], own, None) for own in members[first:last]])
        sums = np.concatenate([signature(y[own, None]) for own in members[first:last]])
        return Outcome(found, details, sums)

    def designs(first: int, last: int) -> Iterable[tuple[np.ndarray, Reduction]]:
        return separate.designs([(own, None) for own in members[first:last]])

    largest = max(len(own) for own in members)
    names = coding.levels.rename(":".join(columns))
    return ModelJob(frame, names, work, separate.blank, _memory(largest, frame), designs)


def _of_row_weights(
    formula: str,
    data: Any,
    row_weights: Any,
    covariance: Any,
    options: dict[str, Any],
    fitting: dict[str, Any],
) -> ModelJob:
    frame = build_frame(formula, data, **options)
    columns = response_columns(row_weights, frame.index, frame.kept)
    separate = SeparateFits(_design(frame, covariance), **fitting)
    y = frame.y_less_offset

    def work(first: int, last: int) -> Outcome:
        W = columns.read(first, last)
        if not ((W >= 0) & np.isfinite(W)).all():
            raise DataError(
                f"row_weights must be finite and not negative; one of them is "
                f"{W[~((W >= 0) & np.isfinite(W))][0]:g}"
            )
        chosen = [np.flatnonzero(w) for w in W.T]
        found, details = separate.fit([(y[rows], rows, w[rows]) for rows, w in zip(chosen, W.T, strict=True)])
        return Outcome(found, details, signature(y[:, None], W))

    def designs(first: int, last: int) -> Iterable[tuple[np.ndarray, Reduction]]:
        return separate.designs([(np.flatnonzero(w), w) for w in columns.read(first, last).T])

    return ModelJob(frame, columns.names, work, separate.blank, _memory(len(y), frame), designs)


def _memory(rows: int, frame: ModelFrame) -> float:
    """Bytes of a model with a design of its own, or more, so that blocks have `SEPARATE_BLOCK` models."""
    columns = 6 + frame.X.shape[1] + sum(group.Z.shape[1] for group in frame.groups)
    return max(8.0 * rows * columns, schedule.BLOCK_MEMORY / SEPARATE_BLOCK)
