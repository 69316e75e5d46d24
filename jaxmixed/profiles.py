r"""Profile likelihoods of a fit: intervals of all its parameters, and how the likelihood falls off.

The profile deviance of a parameter is the smallest deviance that the model has with the parameter held. Its
signed root :math:`\zeta` is compared with normal quantiles: the interval of level :math:`1 - \alpha` is where
:math:`|\zeta| \le z_{1 - \alpha/2}`, so that it is asymmetric where the likelihood is. What was fitted is
profiled: the likelihood of an ML fit, the restricted likelihood of a REML fit
(:mod:`jaxmixed.profile_likelihood`).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import ConvergenceWarning, DataError, printable, user_level
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import Table, number, wrapped
from jaxmixed.inference import VarianceParameters, natural_parameters, variance_inference
from jaxmixed.parameter_values import parameters_of
from jaxmixed.profile_constraints import Everything, Held, Holding, held_element, held_natural
from jaxmixed.profile_likelihood import Criterion, Lane
from jaxmixed.profile_paths import Point, Track, begin, follow, limits
from jaxmixed.profile_plots import Curve, draw_density, draw_zeta
from jaxmixed.residual_inference import residual_inference
from jaxmixed.residual_profiles import held_residuals, profiled_names, residual_values
from jaxmixed.weighted_samples import refuse_sampling_weights

PlotKind = Literal["zeta", "density"]

STEPS = 8
"""Points of a profile between its minimum and the level that it reaches."""

LOWER = 1e-5
"""A deviance below that of the estimates by more than this is another optimum, not rounding."""

_KINDS = ("fixed", "sd", "corr", "kernel")
_GUESS = 0.2  # a step where there is no standard error: relative to sigma, or of an angle


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A parameter of a fit and its profile.

    Attributes
    ----------
    name : str
    kind : str
        "fixed", "sd", "corr", "kernel" or "residual".
    group : str
        Its grouping; "" of a coefficient.
    estimate : float
    track : Track or None
        None for a dropped coefficient, and for a parameter that nothing has: the correlation of an effect
        without variance.
    origin, slope : float
        A coefficient is ``origin + slope * c`` of the held coordinate.
    held : Held or None
        A variance parameter's constraint.
    """

    name: str
    kind: str
    group: str
    estimate: float
    track: Track | None
    origin: float = 0.0
    slope: float = 1.0
    held: Held | None = None

    def value(self, c: float) -> float:
        """The parameter from its coordinate; the ends of its range from infinite ones."""
        if self.held is None:
            return self.origin + self.slope * c
        if c <= self.held.low:
            return self.held.ends[0]
        if c >= self.held.high:
            return self.held.ends[1]
        return self.held.value(c)


class Profile:
    """Profile likelihoods of a fit.

    Attributes
    ----------
    table : pandas.DataFrame
        A row for each point, parameter by parameter in rising order: ``parameter``, its ``value``, ``zeta``
        (signed root of the rise of the deviance), ``deviance``, and all parameters of the fit by name as they
        are there. Under REML deviances of a coefficient are of the model without its column.

    Notes
    -----
    Names are those of `Bootstrap`: coefficients, ``sd(x | group)``, ``corr(x, z | group)``,
    ``sd(Residual)``.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", data, method="ml")
    >>> profile = fit.profile("Days")
    >>> profile.conf_int().round(3).loc["Days"].tolist()
    [8.887, 12.048]
    >>> profile.table.columns[:4].tolist()
    ['parameter', 'value', 'zeta', 'deviance']
    """

    def __init__(self, fit: Fitted, criterion: Criterion, targets: list[Target], cutoff: float) -> None:
        self.fit, self._criterion, self._targets, self._cutoff = fit, criterion, targets, cutoff
        self.table = _table(fit, criterion, targets, cutoff)

    def __repr__(self) -> str:
        names = ", ".join(printable(target.name) for target in self._targets)
        return f"<Profile: {names}; {len(self.table)} points, of {printable(self.fit.frame.formula.text)}>"

    def __str__(self) -> str:
        return self.summary()

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Profile likelihood intervals.

        Parameters
        ----------
        level : float
            Confidence level; may be higher than that of the profile.

        Returns
        -------
        pandas.DataFrame
            Columns ``conf_low`` and ``conf_high`` by parameter. Where the profile stays within the level up
            to the end of the parameter's range, that is the limit: 0 for a standard deviation, -1 or 1 for a
            correlation, infinity without an end. NaN where a search failed, and for dropped coefficients.

        Raises
        ------
        DataError
            If the level is none.

        Warns
        -----
        ConvergenceWarning
            If a search failed, or found a lower deviance than that of the estimates.
        """
        return _limits(self.fit, self._criterion, self._targets, level)

    def summary(self, level: float = 0.95) -> str:
        """Estimates and intervals as text."""
        found = self.conf_int(level)
        rows: list[tuple[str, ...]] = []
        heading = ""
        order = list(dict.fromkeys(target.group for target in self._targets if target.group != "Residual"))
        shown = sorted(
            zip(self._targets, found.to_numpy(), strict=True),
            key=lambda own: order.index(own[0].group) if own[0].group in order else len(order),
        )
        for target, (low, high) in shown:
            if target.group not in (heading, "Residual"):
                rows.append((printable(target.group),))
                heading = target.group
            name = printable(target.name.replace(f" | {target.group})", ")"))
            name = f"  {name}" if heading and target.group != "Residual" else name
            rows.append((name, *(number(value, 5, 8) for value in (target.estimate, low, high))))
        header = ("", "estimate", f"[{100 * level:g}% conf.", "interval]")
        criterion = "restricted likelihood (REML)" if self.fit.estimates.method == "reml" else "likelihood"
        lines = [
            f"Profile {criterion}",
            wrapped(printable(self.fit.frame.formula.text), first="Formula: ", indent="         "),
            "",
            Table("", header, tuple(rows)).text(),
        ]
        return "\n".join(lines)

    def plot(self, kind: PlotKind = "zeta", *, level: float = 0.95, axes: Any = None) -> np.ndarray:
        r"""Draw the profiles, a panel for each parameter.

        Parameters
        ----------
        kind : str
            ``"zeta"``: :math:`\zeta` against the parameter, with the interval; a straight line where the
            likelihood is that of a normal distribution. ``"density"``: the density of which the profile is
            the normal score, :math:`\phi(\zeta)\, d\zeta/d\theta`; what it lacks to one lies at an end of the
            range, such as a standard deviation of zero.
        level : float
            Level of the intervals shown.
        axes : sequence of matplotlib.axes.Axes, optional
            One for each parameter; by default those of a new figure.

        Returns
        -------
        array of matplotlib.axes.Axes

        Raises
        ------
        DataError
            For another kind, or too few axes.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> axes = fit.profile(["Days", "sigma"]).plot()
        >>> [ax.get_title(loc="left") for ax in axes]
        ['Days', 'sd(Residual)']
        """
        if kind not in ("zeta", "density"):
            raise DataError(f"kind is {kind!r}; a profile is drawn as 'zeta' or 'density'")
        found = self.conf_int(level).to_numpy()
        curves = [
            _curve(target, (float(low), float(high)), self._cutoff)
            for target, (low, high) in zip(self._targets, found, strict=True)
        ]
        draw = draw_zeta if kind == "zeta" else draw_density
        return draw(curves, level, axes)


def profile(fit: Fitted, which: Any = None, level: float = 0.999) -> Profile:
    """Profile the likelihood of a fit; arguments as for `MixedResults.profile`."""
    cutoff = normal_quantile(level)
    criterion, targets = _begin(fit, which)
    if _tracks(targets):
        follow(criterion, _tracks(targets), cutoff, cutoff / STEPS)
    _warn(fit, criterion, targets)
    return Profile(fit, criterion, targets, cutoff)


def profile_limits(fit: Fitted, level: float = 0.95, which: Any = None) -> pd.DataFrame:
    """Profile likelihood intervals without the profiles; see `MixedResults.conf_int`.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", data, method="ml")
    >>> profile_limits(fit).round(2).loc["sd((Intercept) | Subject)"].tolist()
    [26.01, 52.94]
    """
    normal_quantile(level)
    criterion, targets = _begin(fit, which)
    return _limits(fit, criterion, targets, level)


def _begin(fit: Fitted, which: Any) -> tuple[Criterion, list[Target]]:
    """The parameters asked for, each with the minimum of its profile."""
    names = _chosen(fit, which)
    why = "differences of a pseudo-likelihood are not distributed as chi-squared"
    advice = "the limits in coef_table() and varcorr are robust ones"
    refuse_sampling_weights(fit.estimates, "a profile", why, advice)
    criterion = Criterion(fit.state, fit.estimates)
    targets = [target for target in targets_of(fit, criterion, names) if target.name in names]
    if _tracks(targets):
        begin(criterion, _tracks(targets))
    return criterion, targets


def _tracks(targets: Iterable[Target]) -> list[Track]:
    return [target.track for target in targets if target.track is not None]


def _limits(fit: Fitted, criterion: Criterion, targets: list[Target], level: float) -> pd.DataFrame:
    tracks = _tracks(targets)
    rows = iter(limits(criterion, tracks, normal_quantile(level)) if tracks else [])
    values = []
    for target in targets:
        if target.track is not None:
            low, high = next(rows)
            values.append((target.value(low), target.value(high)))
        else:
            values.append((np.nan, np.nan) if target.held is None else target.held.ends)
    _warn(
        fit,
        criterion,
        targets,
        [t for t, (a, b) in zip(targets, values, strict=True) if np.isnan([a, b]).any()],
    )
    names = pd.Index([target.name for target in targets])
    return pd.DataFrame(np.array(values).reshape(-1, 2), index=names, columns=["conf_low", "conf_high"])


# Which parameters


def shown_names(fit: Fitted) -> list[str]:
    """Names of the parameters that can be profiled, in the order of the tables."""
    known = parameters_of(fit)
    return [*(known.names[place] for place in known.places(*_KINDS)), *profiled_names(fit.estimates)]


def _chosen(fit: Fitted, which: Any) -> set[str]:
    """Names that are asked for; "sigma" is the residual standard deviation."""
    known = shown_names(fit)
    if which is None:
        return set(known)
    wanted = [which] if isinstance(which, str) else which
    if not isinstance(wanted, Iterable) or isinstance(wanted, dict):
        raise DataError(f"which is {which!r}; give the name of a parameter, or a list of names")
    chosen = set()
    for name in wanted:
        if name in known:
            chosen.add(str(name))
        elif name == "sigma":
            chosen.add("sd(Residual)")
        else:
            if str(name) in parameters_of(fit, residual=True).names:
                raise DataError(
                    f"profiles of {name!r} are not available: such parameters of this residual structure are"
                    " functions of several free ones; residual_table() has intervals for all; profiles are of"
                    f" {', '.join(map(repr, known))}"
                )
            close = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            listed = ", ".join(map(repr, known))
            raise DataError(f"the fit has no parameter {name!r}{hint}; it has {listed}")
    if not chosen:
        raise DataError("which is empty; name a parameter, or leave it out for all of them")
    return chosen


def targets_of(fit: Fitted, criterion: Criterion, wanted: set[str] | None = None) -> list[Target]:
    """Every parameter that can be profiled, with a track that has no point yet.

    Parameters
    ----------
    fit : Fitted
    criterion : Criterion
    wanted : set of str, optional
        Names of those that matter: a kernel's parameter that is not among them may be left out.

    Returns
    -------
    list of Target
        In the order of the tables.
    """
    names = iter(shown_names(fit))
    return [
        *_coefficients(fit, criterion, names),
        *_elements(fit, criterion, names),
        *_naturals(fit, criterion, names, wanted),
        *_residuals(fit, criterion, names),
    ]


def _coefficients(fit: Fitted, criterion: Criterion, names: Any) -> list[Target]:
    found, estimates = [], fit.estimates
    keep = fit.state.fixed.columns.keep.tolist()
    errors = np.sqrt(np.diagonal(estimates.cov_beta))
    for j, beta in enumerate(estimates.beta.tolist()):
        if j not in keep:
            found.append(Target(next(names), "fixed", "", np.nan, None))
            continue
        regression, origin, slope = criterion.regression_without(keep.index(j))
        lane = Lane(Everything(), regression, criterion.plain_frames)
        track = Track(
            lane=lane,
            c=(beta - origin) / slope,
            start=criterion.estimate,
            unit=float(errors[j] / slope),
            low=-np.inf,
            high=np.inf,
            known_ends=True,
        )
        found.append(Target(next(names), "fixed", "", beta, track, origin, slope))
    return found


def _elements(fit: Fitted, criterion: Criterion, names: Any) -> list[Target]:
    """Standard deviations and correlations, sigma the last."""
    estimates, found = fit.estimates, []
    inference = variance_inference(VarianceParameters.of(estimates)).model(0)
    errors = np.sqrt(np.diagonal(inference.sd_corr_covariance))
    starts = _starts(fit)
    for (t, i, j), value, error in zip(inference.index, inference.sd_corr.tolist(), errors, strict=True):
        kind = "sd" if i == j else "corr"
        if t < 0:
            held = Held(
                Holding(criterion.k),
                None,
                None,
                lambda c: criterion.scale * float(np.exp(c)),
                ends=(0.0, np.inf),
            )
        else:
            term = estimates.terms[t]
            held = held_element(term.covariance, term.frame, starts[t], (i, j), criterion.scale)
        found.append(_variance_target(criterion, next(names), kind, value, error, held, t))
    return found


def _naturals(fit: Fitted, criterion: Criterion, names: Any, wanted: set[str] | None) -> list[Target]:
    """Parameters of kernels."""
    found = []
    own = natural_parameters(VarianceParameters.of(fit.estimates))
    for t, (term, start, natural) in enumerate(zip(fit.estimates.terms, _starts(fit), own, strict=True)):
        for number_, value in enumerate(natural.estimate[0].tolist()):
            name, error = next(names), natural.std_error[0, number_]
            if wanted is None or name in wanted:
                held = held_natural(term.covariance, start, number_)
                found.append(_variance_target(criterion, name, "kernel", value, error, held, t))
    return found


def _residuals(fit: Fitted, criterion: Criterion, names: Any) -> list[Target]:
    """Parameters of correlated residuals."""
    held = held_residuals(fit.estimates, criterion.scale)
    if not held:
        return []
    known = residual_inference(fit.estimates)
    errors = dict(zip(known.names, np.sqrt(np.diagonal(known.covariance)).tolist(), strict=True))
    values = dict(zip(known.names, known.values.tolist(), strict=True))
    return [
        Target(name, "residual", "Residual", values[name], None)
        if np.isnan(errors[name])  # at the end of its range, or not determined
        else _variance_target(criterion, name, "residual", values[name], errors[name], own, -1)
        for name, own in zip(names, held, strict=True)
    ]


def _starts(fit: Fitted) -> list[int]:
    """Positions of the terms' parameters."""
    sizes = [term.covariance.num_params for term in fit.estimates.terms]
    return np.cumsum([0, *sizes])[:-1].tolist()


def _variance_target(
    criterion: Criterion, name: str, kind: str, value: float, error: float, held: Held, t: int
) -> Target:
    group = criterion.estimates.terms[t].group if t >= 0 else "Residual"
    if np.isnan(value):
        return Target(name, kind, group, value, None, held=held)
    z, frames = criterion.estimate, list(criterion.plain_frames)
    if held.frame is not None and held.into is not None:
        term = criterion.estimates.terms[t]
        start = sum(own.covariance.num_params for own in criterion.estimates.terms[:t])
        own = slice(start, start + term.covariance.num_params)
        z[own] = term.covariance.transformed(term.standard, held.into)
        frames[t] = held.frame
    c, start_y = held.map.lift(z)
    c = float(np.clip(c, held.low, held.high))  # a kernel's parameter may stand beyond where it matters
    unit = _GUESS * (float(np.exp(z[-1])) if held.low == 0 and held.high == np.inf else 1.0)
    if error > 0:
        small = 1e-5 * max(abs(c), 1e-3)
        slope = abs(held.value(c + small) - held.value(c - small)) / (2 * small)
        unit = float(error / slope) if slope > 0 else unit
    track = Track(
        lane=Lane(held.map, criterion.whole_regression(), tuple(frames)),
        c=c,
        start=start_y,
        unit=unit,
        low=held.low,
        high=held.high,
        known_ends=held.known_ends,
    )
    return Target(name, kind, group, value, track, held=held)


# What was found


def _parameters_at(fit: Fitted, criterion: Criterion, track: Track, points: list[Point]) -> np.ndarray:
    """All parameters in the order of the tables at the points of a track, (n, P)."""
    z = np.stack([point.z for point in points])
    fixed = np.full((len(points), len(fit.estimates.beta)), np.nan)
    direction = np.stack([point.direction for point in points])
    fixed[:, fit.state.fixed.columns.keep] = criterion.coefficients(direction)
    sigma = criterion.scale * np.exp(z[:, -1:])
    elements, naturals = [], []
    for term, start, frame in zip(fit.estimates.terms, _starts(fit), track.lane.frames, strict=True):
        theta = z[:, start : start + term.covariance.num_params]
        T = term.frame @ frame @ term.covariance.factor(theta)
        G = T @ T.swapaxes(1, 2)
        i, j = np.array(term.covariance.elements()).T
        with np.errstate(all="ignore"):
            corr = np.clip(G[:, i, j] / np.sqrt(G[:, i, i] * G[:, j, j]), -1.0, 1.0)
        elements.append(np.where(i == j, sigma * np.sqrt(G[:, i, i]), corr))
        naturals.append(term.covariance.natural(theta).value)
    residual = residual_values(fit.estimates, z, criterion.scale)
    return np.concatenate([fixed, *elements, sigma, *naturals, residual], axis=1)


def _followed(track: Track, cutoff: float) -> list[Point]:
    """Points of a track without ends of the range that lie beyond where it was followed."""
    if not track.points:
        return []
    base = track.base.c
    far = {np.sign(p.c - base) for p in track.points if not p.at_end and abs(p.zeta) >= cutoff}
    return [p for p in track.points if not (p.at_end and np.sign(p.c - base) in far)]


def _table(fit: Fitted, criterion: Criterion, targets: list[Target], cutoff: float) -> pd.DataFrame:
    """Rows of all profiles."""
    names, parts = shown_names(fit), []
    for target in targets:
        if target.track is None or not target.track.points:
            continue
        points = _followed(target.track, cutoff)
        values = _parameters_at(fit, criterion, target.track, points)
        own = [target.value(point.c) for point in points]
        values[:, names.index(target.name)] = own
        columns = {
            "parameter": target.name,
            "value": own,
            "zeta": [point.zeta for point in points],
            "deviance": [point.deviance for point in points],
        }
        parts.append(pd.concat([pd.DataFrame(columns), pd.DataFrame(values, columns=names)], axis=1))
    if not parts:
        return pd.DataFrame(columns=["parameter", "value", "zeta", "deviance", *names])
    return pd.concat(parts, ignore_index=True)


def _curve(target: Target, interval: tuple[float, float], cutoff: float) -> Curve:
    """What is drawn of a parameter."""
    points = [] if target.track is None else _followed(target.track, cutoff)
    values = np.array([target.value(point.c) for point in points])
    zeta = np.array([point.zeta for point in points])
    finite = np.isfinite(values)
    ends = (-np.inf, np.inf) if target.held is None else target.held.ends
    return Curve(printable(target.name), values[finite], zeta[finite], target.estimate, interval, ends)


def _warn(fit: Fitted, criterion: Criterion, targets: list[Target], without: Sequence[Target] = ()) -> None:
    """Say which searches failed, and whether the estimates are not the best."""
    failed = [
        printable(t.name)
        for t in targets
        if t.track is not None and (any(t.track.failed) or any(t is own for own in without))
    ]
    if failed:
        warnings.warn(
            f"the search along the profile of {', '.join(failed)} failed; what could not be computed is NaN",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    lowest: tuple[float, str, float] | None = None
    for target in targets:
        if target.track is None or not target.track.points:
            continue
        other = criterion.method == "reml" and target.kind == "fixed"
        usual = target.track.base.deviance if other else fit.estimates.deviance
        best = min(target.track.points, key=lambda point: point.deviance)
        gain = usual - best.deviance
        if gain > LOWER + 1e-10 * abs(usual) and (lowest is None or gain > lowest[0]):
            lowest = (gain, printable(target.name), target.value(best.c))
    if lowest is not None:
        gain, name, value = lowest
        warnings.warn(
            f"the deviance is lower by {gain:.6g} than at the estimates where {name} is {value:.6g}: the"
            " estimates are not the maximum of the likelihood, and intervals around them cannot be trusted",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
