"""What to do about a bad verdict or an estimate on the boundary: a sentence for each case."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jaxmixed.diagnosis import DEPENDENT
from jaxmixed.errors import printable
from jaxmixed.formatting import counted
from jaxmixed.inference import joined
from jaxmixed.optimality import boundary_components
from jaxmixed.residual_limits import AT_END, NO_EFFECT

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame
    from jaxmixed.multistart import Agreement
    from jaxmixed.optimality import BoundaryComponent

_LIMITS = 'conf_int(method="profile") or method="boot" gives limits'

_OTHER_STARTS = "certificate(starts=8) searches from other starts, and its refit() fits from the best of them"

_SIMPLER_RESIDUALS = "Compare with a residual structure without this parameter (AIC); other estimates stand"

GRADIENT_SHOWN, DECREMENT_SHOWN = 1e-8, 1e-12
"""Smaller values are rounding, and are shown as such."""

ADVICE = {
    "iteration_limit": ("The estimates are those of the last step"),
    "no_descent": (
        "See where certificate(starts=8) arrives; where starts disagree, simplify the random part"
    ),
    "not_finite": "Look for columns of extreme magnitude, and simplify the random part",
    "saddle": _OTHER_STARTS,
    "flat": (
        "Leave out an effect, or take a structure with fewer parameters; what does not depend on these stands"
    ),
    "not_stationary": (
        "Fit again with a higher max_iterations, or from another start: certificate(starts=8).refit()"
    ),
    "boundary": _OTHER_STARTS,
    "unbounded": ("Leave out the rows, level or time concerned, or take a structure with fewer parameters"),
    "vanishing_residual": (
        "Use a smoother kernel, several rows for each position, or give the residuals this structure "
        "(residuals=)"
    ),
    "no_residual": (
        "Several rows for a level would tell its effect from the residual; check the relationship for levels "
        "without a share of their own"
    ),
}
"""By the kind of problem, as in `Diagnostics.problems`."""


class Finding(NamedTuple):
    """Something that a reader must know, and what to do about it; both are sentences without a full stop.

    Attributes
    ----------
    kind : str
        A kind of `Diagnostics.problems`, ``"variance"``, ``"correlation"``, ``"rank"`` (on the boundary),
        ``"residual"`` (of the residuals, at the end of its range), ``"dependent"`` (random-effects columns),
        ``"rank_deficient"`` (fixed effects), ``"better_start"`` or ``"other_parameters"``.
    finding : str
    advice : str
    """

    kind: str
    finding: str
    advice: str


def plain_number(value: float, floor: float) -> str:
    """A number of two digits; what is below `floor` is rounding, and said to be below it.

    Examples
    --------
    >>> plain_number(3.2e-15, 1e-8), plain_number(0.00025, 1e-8), plain_number(0.0, 1e-8)
    ('below 1e-08', '0.00025', 'below 1e-08')
    """
    return f"below {floor:g}" if abs(value) < floor else f"{value:.2g}"


def boundary_advice(own: BoundaryComponent, frame: ModelFrame, estimates: Estimates) -> str:
    """What to do about an estimate on the boundary: which simpler term says the same.

    Parameters
    ----------
    own : BoundaryComponent
    frame : ModelFrame
    estimates : Estimates

    Returns
    -------
    str
    """
    term, shown = estimates.terms[own.term], joined(own.effects, ", ")
    text = frame.groups[term.frame_index].term.text
    if own.kind == "variance":
        if not (term.cov.diagonal() > 0).any():
            return f"The model without {text} has the same likelihood; {_LIMITS} of the variance"
        return f"Leaving {shown} out of {text} leaves the likelihood as it is; {_LIMITS} of the variance"
    levels = f"The {counted(term.num_levels, 'level')} of {own.group} do not tell these effects apart"
    if own.kind == "rank":
        return (
            f'{levels}: leave an effect out of {text}, or take covariance="independent"; predictions and '
            "fixed effects stand"
        )
    if term.covariance.name == "exchangeable":
        simpler = "a random intercept alone" if own.value > 0 else 'covariance="identity"'
        return f"Compare {text} with {simpler} (AIC); {_LIMITS} of the correlation"
    apart = text.replace("|", "||", 1) if term.structure == "unstructured" else 'covariance="independent"'
    return (
        f"{levels}: compare with {apart}, whose correlation is 0, or with one effect less (AIC); {_LIMITS} "
        "of the correlation"
    )


def findings(
    frame: ModelFrame,
    estimates: Estimates,
    boundary: tuple[BoundaryComponent, ...],
    agreement: Agreement | None = None,
) -> tuple[Finding, ...]:
    """Everything bad or on a boundary about a fit, worst first, with advice.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    boundary : tuple of BoundaryComponent
    agreement : Agreement, optional
        Of searches from further starts.

    Returns
    -------
    tuple of Finding
    """
    checks = estimates.diagnostics
    found = []
    if agreement is not None and agreement.improvement:
        what = "a local optimum" if checks.converged else "no optimum"
        found.append(
            Finding(
                "better_start",
                f"a random start led to a deviance lower by {agreement.improvement:.4g}: the fit is {what}",
                "refit() of this certificate fits from there",
            )
        )
    found += [
        Finding(kind, message, ADVICE[kind])
        for kind, message in zip(checks.problems, checks.messages, strict=True)
    ]
    if agreement is not None and (agreement.reached & ~agreement.same_parameters).any():
        found.append(
            Finding(
                "other_parameters",
                "starts reached the same deviance with other variance parameters: they are poorly determined",
                "Report what does not depend on them, or simplify the random part",
            )
        )
    dependent = [text for text in checks.singular_terms if DEPENDENT in text]
    found += [Finding("dependent", text, "Leave the column out of the term") for text in dependent]
    at_end = [text for text in checks.singular_terms if AT_END in text or NO_EFFECT in text]
    found += [Finding("residual", text, _SIMPLER_RESIDUALS) for text in at_end]
    for own in boundary:
        what = f"{own.parameter} is estimated as {own.value:.4g}, on the boundary"
        found.append(Finding(own.kind, what, boundary_advice(own, frame, estimates)))
    if checks.rank_deficient:
        names = ", ".join(checks.rank_deficient)
        found.append(
            Finding(
                "rank_deficient",
                f"fixed-effects columns depend linearly on others and were dropped: {names}",
                "Leave them out of the formula: nothing else changes",
            )
        )
    return tuple(Finding(own.kind, printable(own.finding), printable(f"{own.advice}.")) for own in found)


def summary_line(estimates: Estimates) -> str:
    """The checks in one or two lines of a summary; empty for a linear model.

    Parameters
    ----------
    estimates : Estimates

    Returns
    -------
    str
    """
    found = estimates.diagnostics
    values, parts = found.hessian_eigenvalues, []
    if len(values):
        spectrum = f"{values[0]:.3g} to {values[-1]:.3g}" if len(values) > 1 else f"{values[0]:.3g}"
        parts = [
            f"scaled gradient {plain_number(found.gradient_norm, GRADIENT_SHOWN)}",
            f"Newton decrement {plain_number(found.newton_decrement, DECREMENT_SHOWN)}",
            f"Hessian eigenvalue{'s' if len(values) > 1 else ''} {spectrum}",
        ]
    bounds = boundary_components(estimates)
    if bounds:
        held = counted(len(bounds), "parameter")
        parts.append(f"{held} on the boundary, where the deviance has its minimum")
        if not all(own.is_minimum for own in bounds):
            parts[-1] = f"{held} on the boundary, where the deviance has NO minimum"
    return ", ".join(parts)
