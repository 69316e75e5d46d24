"""`power`: how often a test rejects, by simulation, over a grid of designs and effects.

Every design is one batch: its responses are drawn and fitted together (:mod:`jaxmixed.refits`), blocks of
replicates shared out by :mod:`jaxmixed.schedule`. When a multiple of a fixed-effects column is added to the
response, a fit stays as it is, but for the coefficient, which changes by as much: a design is therefore
fitted once for all effects.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.covariance import STRUCTURES
from jaxmixed.crossproducts import Reduction
from jaxmixed.draws import ResponseSource, check_seed, effects_source, simulate_responses
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, printable, user_level
from jaxmixed.frame import ModelFrame
from jaxmixed.hypotheses import (
    Evidence,
    Hypothesis,
    KindOfTest,
    coefficients_hypothesis,
    kind_of,
    nested_hypothesis,
)
from jaxmixed.many_estimates import OK
from jaxmixed.many_fits import whole_design
from jaxmixed.model import Structure, covariance_of, structures_of, terms_of
from jaxmixed.parameters import ModelParameters, fitted_parameters, stated_parameters
from jaxmixed.power_grid import Grid, grid_of
from jaxmixed.power_results import NOT_DONE, PowerResult, PowerSetting
from jaxmixed.refits import Refitter
from jaxmixed.residual_refusals import refuse_residual_structure
from jaxmixed.resizing import Selection, every_row, resized, with_groups, with_size
from jaxmixed.results import MixedResults
from jaxmixed.schedule import BLOCK_MEMORY, assemble, bounds, gather, run
from jaxmixed.simulation import design_frame
from jaxmixed.weighted_samples import refuse_weighted_sample

_MAX_NAMED = 5  # points that a warning names
_BLOCK = (
    2048  # replicates in a block, at most: what is lost by an interrupt, and the step of the progress bar
)


def power(
    formula: str | None = None,
    data: Any = None,
    params: Mapping[str, Any] | None = None,
    *,
    fit: MixedResults | None = None,
    test: str | Sequence[str] | None = None,
    kind: str = "wald",
    alpha: float = 0.05,
    n: int = 1000,
    seed: int | None = None,
    vary: Mapping[str, Any] | None = None,
    effects: Mapping[str, float] | None = None,
    method: str | None = None,
    level: float = 0.95,
    covariance: str | Mapping[str, str] | None = None,
    weights: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> PowerResult:
    """Find the power of a test by simulation, at every point of a grid of designs and effects.

    Parameters
    ----------
    formula : str, optional
        The model, as for `mixed`; the response need not be in the data. By default that of ``fit``.
    data : DataFrame, mapping or callable
        The design: a table (see `study` for one without data), or a function that makes it from the values in
        ``vary["design"]``. By default the rows of ``fit``.
    params : mapping, optional
        ``"beta"``, ``"random"`` and ``"sigma"``, as for `simulate`.
    fit : MixedResults, optional
        A pilot study, whose estimates are the parameters; coefficients that it lacks come from ``effects``.
    test : str or list of str, optional
        What is tested: a coefficient or a term (``"treatment"``), several jointly (``["x", "x:z"]``), or the
        formula of a smaller model (``"~ x + (1 | school)"``, which needs ``data``). It may be left out where
        the model has only one coefficient beside the intercept.
    kind : {"wald", "satterthwaite", "kenward-roger", "lr"}
        ``"wald"``: z-test, or chi-squared test of several coefficients. ``"satterthwaite"``: t or F test with
        Satterthwaite's degrees of freedom; ``"kenward-roger"``: Kenward & Roger's, which takes longer. With
        few groups these hold the level, which the Wald test exceeds. ``"lr"``: likelihood-ratio test against
        the smaller model, which is fitted to every response, too; a variance is tested by the mixture that
        `lrtest` uses.
    alpha : float
        Level of the test.
    n : int
        Replicates at every point.
    seed : int, optional
        Non-negative. The same seed gives the same result, whatever the devices. None takes a fresh one, which
        the result tells.
    vary : mapping, optional
        Lists of numbers, of which every combination is a point:

        - ``{"groups": {"school": [20, 40]}}``: numbers of groups; of groups within groups, the number in each
          group above.
        - ``{"size": [10, 20]}``: rows in each innermost group, or ``{"size": {"school": [50, 100]}}``.
        - ``{"effects": {"treatment": [0.2, 0.5]}}``: values of coefficients.
        - ``{"design": {"dropout": [0, 0.2]}}``: arguments of the function ``data``.
    effects : mapping, optional
        Values of coefficients at all points, in place of those in ``params`` or of the fit.
    method : {"reml", "ml"}, optional
        By default "reml", but "ml" for a likelihood-ratio test of fixed effects, which needs it.
    level : float
        Of the Monte-Carlo intervals.
    covariance, weights, missing, contrasts, functions
        As for `mixed`.
    devices, mesh, progress
        As for `fit_many`.

    Returns
    -------
    PowerResult

    Raises
    ------
    DataError, DesignError, FormulaError
        Naming the argument or the point at fault, and what there is to choose from.

    Warns
    -----
    ConvergenceWarning
        More than 5% of the fits of a point failed. These are left out.
    InterruptedWarning
        You interrupted the work; the result holds the replicates that were finished.

    Notes
    -----
    More groups than the data have are copies of them, fewer are a random choice that keeps arms of a trial
    in balance; rows in groups likewise (:mod:`jaxmixed.resizing`). Covariates are held fixed over the
    replicates. Points share random numbers, which makes curves smoother than independent points would be.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> trial = jm.study({"school": 40}, size=25, between={"treatment": [0, 1]})
    >>> params = {"beta": {"(Intercept)": 0, "treatment": 0.3}, "random": {"school": 0.4}, "sigma": 1}
    >>> curve = jm.power(
    ...     "score ~ treatment + (1 | school)",
    ...     trial,
    ...     params,
    ...     vary={"groups": {"school": [40, 80]}},
    ...     n=500,
    ...     seed=1,
    ... )
    >>> curve.table[["school", "rows", "power", "n_failed"]]
       school  rows  power  n_failed
    0      40  1000  0.542         0
    1      80  2000  0.852         0
    """
    kind_of_test = kind_of(kind)
    _check_shares(alpha=alpha, level=level)
    _check_counts(n)
    seed = secrets.randbits(63) if seed is None else check_seed(seed)
    grid = grid_of(vary, callable(data))
    known = {"weights": weights, "missing": missing, "contrasts": contrasts, "functions": functions}
    request = _Request(formula, data, params, fit, dict(effects or {}), covariance, known, grid.effect_names)
    plans = _plans(request, grid, test, kind_of_test, method, seed)
    first = plans[0].base
    axes = grid.named(first.frame)
    arrays = _simulated(plans, grid, kind_of_test, int(n), seed, (devices, mesh, progress))
    setting = PowerSetting(
        formula=first.frame.formula.text,
        test=plans[0].hypothesis.label,
        kind=kind_of_test.title,
        method=plans[0].method,
        alpha=float(alpha),
        level=float(level),
        n=int(n),
        seed=seed,
    )
    points = pd.DataFrame(list(grid.points), columns=[axis.name for axis in axes])
    if not axes:
        points = pd.DataFrame(index=range(1))
    rows = np.array([len(plans[plan].X) for plan, _ in grid.places])
    null = np.array([plans[plan].is_null(grid.effects[effect]) for plan, effect in grid.places])
    result = PowerResult(setting, axes, points, rows, null, *arrays)
    _warn(result)
    return result


class _Request(NamedTuple):
    """The arguments that say what the model and its parameters are."""

    formula: str | None
    data: Any
    params: Any
    fit: MixedResults | None
    effects: dict[str, Any]
    covariance: Any
    options: dict[str, Any]
    varied: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Base:
    """A model with its parameters on the data as they are given."""

    frame: ModelFrame
    parameters: ModelParameters
    data: Any


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """One design: how its responses are drawn and fitted."""

    base: _Base
    hypothesis: Hypothesis
    method: str
    X: np.ndarray
    source: ResponseSource
    reduction: Reduction
    full: Refitter
    reduced: Refitter | None

    def change(self, effects: Mapping[str, float]) -> np.ndarray:
        """What these effects add to the coefficients, (p,)."""
        change = np.zeros(len(self.base.parameters.beta))
        for name, value in effects.items():
            j = self.base.frame.x_names.index(name)
            change[j] = value - self.base.parameters.beta[j]
        return change

    def is_null(self, effects: Mapping[str, float]) -> bool:
        """Whether the hypothesis is true with these effects."""
        columns = list(self.hypothesis.columns)
        values = (self.base.parameters.beta + self.change(effects))[columns]
        return bool(columns) and self.hypothesis.more_effects == 0 and not values.any()

    def outcomes(
        self, first: int, last: int, seed: int, grid: Grid, kind: KindOfTest
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P-values, reasons and singularity (replicates, effects) of replicates ``first .. last - 1``."""
        Y = simulate_responses(self.source, seed, first, last - first)
        fits = self.full.fit(Y)
        columns = []
        for effects in grid.effects:
            change = self.change(effects)
            full, reduced, reason = replace(fits, beta=fits.beta + change), None, fits.reason
            if self.reduced is not None:
                reduced = self.reduced.fit(Y + (self.X @ change)[:, None])
                reason = np.where(reason == OK, reduced.reason, reason)
            p_values = kind.p_values(Evidence(full, reduced, self.reduction), self.hypothesis)
            columns.append((p_values, reason, fits.singular))
        p, reasons, singular = (np.stack(values, axis=1) for values in zip(*columns, strict=True))
        return p, reasons.astype(np.uint8), singular


def _plans(
    request: _Request, grid: Grid, test: Any, kind: KindOfTest, method: str | None, seed: int
) -> list[_Plan]:
    """A plan for each design of the grid; nothing has been fitted when one of them is refused."""
    bases: dict[tuple[Any, ...], tuple[_Base, Hypothesis, str]] = {}
    plans = []
    for number, design in enumerate(grid.designs):
        key = tuple(design.arguments.values())
        if key not in bases:
            with _at(", ".join(f"{name} = {printable(value)}" for name, value in design.arguments.items())):
                base = _base(request, design.arguments)
                hypothesis = _hypothesis(request, base, test, kind)
            bases[key] = base, hypothesis, _method(method, request, hypothesis, kind)
        base, hypothesis, own_method = bases[key]
        groups, size = design.groups(base.frame), design.size(base.frame)
        with _at(grid.describe(number)):
            selection = every_row(base.frame)
            for columns, levels in groups:
                selection = with_groups(base.frame, selection, columns, levels, seed)
            for columns, rows in size:
                selection = with_size(base.frame, selection, columns, rows, seed)
            plans.append(_plan(base, hypothesis, own_method, selection, seed, grid.effect_names))
    return plans


def _base(request: _Request, arguments: Mapping[str, Any]) -> _Base:
    """The frame and the parameters of the model on the data as given, or on those made for a point."""
    formula, data, params, fit = request[:4]
    if fit is not None and not isinstance(fit, MixedResults):
        raise DataError(f"fit= must be a result of mixed(), not a {type(fit).__name__}")
    if fit is not None:
        refuse_weighted_sample(fit.estimates, "power()", "each row of the design is drawn and counted once")
        refuse_residual_structure(
            fit.estimates,
            "power() draws and fits models with independent residuals",
            "draw responses with fit.simulate(), and test each refit(y)",
        )
    if isinstance(formula, MixedResults) or isinstance(params, MixedResults):
        raise DataError("give the pilot fit as fit=")
    if (params is None) == (fit is None):
        raise DataError(
            "give the parameters as params=, or a pilot fit as fit=" + ("" if fit is None else ", not both")
        )
    if data is None and (fit is None or formula is not None):
        raise DataError("data= is missing: the table of the design, without a response (see jm.study)")
    if formula is None and fit is None:
        raise DataError("the formula of the model is missing")
    if data is None and fit is not None:
        frame = fit.frame
        if request.options["weights"] is not None:
            raise DataError("weights= is for data=; those of the fit are used")
    else:
        text = formula if formula is not None or fit is None else fit.formula
        data = data(**arguments) if callable(data) else data
        frame = design_frame(text or "", data, offset=None, **request.options)
    structures = structures_of(frame.groups, request.covariance)
    if formula is None and fit is not None and request.covariance is None:
        fitted = {term.frame_index: term for term in fit.estimates.terms}
        terms = [fitted[number] for number in range(len(frame.groups))]
        structures = [term.structure if term.structure in STRUCTURES else term.covariance for term in terms]
    for group in frame.groups:
        if group.relationship is not None:
            raise DesignError(
                f"the levels of {printable(group.label)!r} are related (a known relationship matrix), so"
                " designs of other sizes cannot be made of them; simulate from the fit instead:"
                " fit.simulate(1000), then fit.refit_many()"
            )
    frame = _with_structures(frame, structures)
    return _Base(frame, _parameters(frame, request), data)


def _with_structures(frame: ModelFrame, structures: Sequence[Structure]) -> ModelFrame:
    """The frame with these structures of its terms, covariance functions bound to their positions."""
    groups = [
        replace(group, structure=own if own in STRUCTURES else covariance_of(own, group))
        for group, own in zip(frame.groups, structures, strict=True)
    ]
    return replace(frame, groups=tuple(groups))


def _parameters(frame: ModelFrame, request: _Request) -> ModelParameters:
    """All parameters; coefficients that `effects` or the grid give may be lacking elsewhere."""
    effects = {}
    for name, value in request.effects.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float | np.number)
            or not np.isfinite(value)
        ):
            raise DataError(f"effects[{name!r}] is {value!r}; give a finite number")
        effects[name] = float(value)
    for name in (*effects, *request.varied):
        if name not in frame.x_names:
            known = ", ".join(repr(printable(known)) for known in frame.x_names)
            raise DataError(f"effects name {name!r}, which is no coefficient of the model; it has {known}")
    given = dict.fromkeys(request.varied, 0.0) | effects
    if request.fit is not None:
        estimates = request.fit.estimates
        names = list(request.fit.frame.x_names)
        more = {name: value for name, value in given.items() if name not in names}
        extended = replace(estimates, beta=np.append(estimates.beta, list(more.values())))
        found = fitted_parameters(frame, [*names, *more], extended)
    else:
        params = request.params
        if isinstance(params, Mapping) and isinstance(params.get("beta"), Mapping):
            params = {**params, "beta": {**given, **params["beta"]}}
        found = stated_parameters(frame, params)
    beta = found.beta.copy()
    for name, value in effects.items():
        beta[frame.x_names.index(name)] = value
    return replace(found, beta=beta)


def _hypothesis(request: _Request, base: _Base, test: Any, kind: KindOfTest) -> Hypothesis:
    if not (isinstance(test, str) and "~" in test):
        return coefficients_hypothesis(base.frame, test, kind)
    if base.data is None:
        raise DataError(
            f"test={test!r} is a formula, which needs the pilot's data: pass them as data=, or name"
            " coefficients"
        )
    smaller = design_frame(test, base.data, offset=None, **request.options)
    structures = {group.label: group.structure for group in base.frame.groups}
    if request.covariance is not None:
        groups = tuple(
            replace(group, structure=structures.get(group.label, group.structure)) for group in smaller.groups
        )
        smaller = replace(smaller, groups=groups)
    smaller = _with_structures(smaller, [group.structure for group in smaller.groups])
    return nested_hypothesis(base.frame, smaller, kind, test)


def _method(method: str | None, request: _Request, hypothesis: Hypothesis, kind: KindOfTest) -> str:
    """The criterion of the fits."""
    if method is not None and method not in ("reml", "ml"):
        raise DesignError(f"method={method!r} is not known; choose 'reml' or 'ml'.")
    if kind.fits_reduced and hypothesis.columns:
        if method == "reml":
            raise DesignError(
                "restricted likelihoods of different fixed effects cannot be compared: leave method= out, or"
                ' say method="ml"'
            )
        return "ml"
    if kind.needs_reml:
        if method == "ml":
            raise DesignError(
                f'the {kind.title} is defined for REML fits: leave method= out, or say method="reml"'
            )
        return "reml"
    if method is None:
        return "reml" if request.fit is None else request.fit.method
    return method


def _plan(
    base: _Base,
    hypothesis: Hypothesis,
    method: str,
    selection: Selection,
    seed: int,
    varied: Sequence[str],
) -> _Plan:
    """Reduce a design, and see whether it can answer the question."""
    frame = resized(base.frame, selection)
    terms = tuple(
        effects_source(group.Z, group.codes, len(group.levels), cov)
        for group, cov in zip(frame.groups, base.parameters.covariances, strict=True)
    )
    source = ResponseSource(frame.X @ base.parameters.beta, terms, base.parameters.sigma, frame.weights)
    y = simulate_responses(source, seed, 0, 1)[:, 0]
    reduction, full = _refitter(frame, y, method)
    lost = set(range(len(frame.x_names))) - set(reduction.fixed.columns.keep)
    asked = {*hypothesis.columns, *(frame.x_names.index(name) for name in varied)}
    if lost & asked:
        names = ", ".join(repr(printable(frame.x_names[j])) for j in sorted(lost & asked))
        raise DesignError(
            f"the coefficient {names} cannot be estimated: its column is zero, or depends on the others, in"
            " this design"
        )
    reduced = None
    if hypothesis.reduced is not None:
        columns = {name for group in hypothesis.reduced.groups for name in group.columns}
        own = replace(selection, columns={name: selection.columns[name] for name in columns})
        _, reduced = _refitter(resized(hypothesis.reduced, own), y, method)
    return _Plan(base, hypothesis, method, frame.X, source, reduction, full, reduced)


def _refitter(frame: ModelFrame, y: np.ndarray, method: str) -> tuple[Reduction, Refitter]:
    """Reduced design of a frame, and the fits of further responses to it."""
    groupings, terms, labels = terms_of(frame.groups, [group.structure for group in frame.groups])
    whole = whole_design(frame, groupings, terms, labels)
    reduction = whole.reduce(y)
    return reduction, Refitter(reduction, labels, frame.x_names, method=method)  # type: ignore[arg-type]


def _simulated(
    plans: list[_Plan], grid: Grid, kind: KindOfTest, n: int, seed: int, workers: tuple[Any, Any, bool | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P-values, reasons and singularity of all points, (points, n); what was not done has no p-value."""
    devices, mesh, progress = workers
    crew = assemble(devices, mesh)
    sharing = crew if len(plans) < crew.total else None  # designs alone are enough to keep the workers busy
    blocks = [
        (number * n + first, number * n + last)
        for number, plan in enumerate(plans)
        for first, last in bounds(n, max(32.0 * len(plan.X), BLOCK_MEMORY / _BLOCK), sharing)
    ]

    def work(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        number, start = divmod(first, n)
        return plans[number].outcomes(start, start + last - first, seed, grid, kind)

    shape = (len(plans) * n, len(grid.effects))
    whole = {
        "p_values": np.full(shape, np.nan),
        "reasons": np.full(shape, NOT_DONE, dtype=np.uint8),
        "singular": np.zeros(shape, dtype=bool),
    }
    done = np.zeros(len(plans) * n, dtype=bool)
    for number, results in run(work, blocks, crew, label="fits", progress=progress):
        rows = slice(*blocks[number])
        done[rows] = True
        for name, values in zip(whole, results, strict=True):
            whole[name][rows] = values
    everyones, places = gather(
        crew, {name: values[done] for name, values in whole.items()}, np.flatnonzero(done)
    )
    if not len(places):
        raise KeyboardInterrupt
    for name, values in everyones.items():
        whole[name][places] = values
    plan, effect = (np.array(which) for which in zip(*grid.places, strict=True))
    p_values, reasons, singular = (
        values.reshape(len(plans), n, -1)[plan, :, effect] for values in whole.values()
    )
    return p_values, reasons, singular


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Name the point of the grid in an error."""
    try:
        yield
    except (DataError, DesignError) as problem:
        if not place:
            raise
        raise type(problem)(f"at {place}: {problem}") from None


def _check_shares(**shares: Any) -> None:
    for name, value in shares.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 < value < 1:
            raise DataError(f"{name} is {value!r}; give a number between 0 and 1, such as 0.05")


def _check_counts(n: Any) -> None:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"n is {n!r}; give the number of replicates, a positive integer")


def _warn(result: PowerResult) -> None:
    """Say aloud at which points many fits failed."""
    found = [text for text in result.warnings() if not text.startswith("interrupted")]
    if found:
        more = f"; and {len(found) - _MAX_NAMED} more points" if len(found) > _MAX_NAMED else ""
        text = f"power: {'; '.join(found[:_MAX_NAMED])}{more}."
        warnings.warn(printable(text), ConvergenceWarning, stacklevel=user_level())
