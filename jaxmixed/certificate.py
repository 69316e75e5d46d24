"""The certificate of convergence: what was checked about an optimum, what was found, what to do about it.

Everything is read from what the fit left: nothing is evaluated anew, except by the searches from further
starts that are made on request (:mod:`jaxmixed.multistart`).
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import fitting
from jaxmixed.announcements import announce_verdicts
from jaxmixed.certificate_advice import (
    DECREMENT_SHOWN,
    GRADIENT_SHOWN,
    Finding,
    findings,
    plain_number,
)
from jaxmixed.diagnosis import RESIDUAL
from jaxmixed.errors import ConvergenceWarning, DataError, printable, user_level
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import WIDTH, counted, number, wrapped
from jaxmixed.many_fits import design_of_fit
from jaxmixed.multistart import Agreement, search_from_random_starts
from jaxmixed.optimality import BoundaryComponent, WeakDirection, boundary_components, weakest_direction
from jaxmixed.residual_inference import free_names
from jaxmixed.search import GRADIENT_TOLERANCE, SMALLEST_CURVATURE
from jaxmixed.weighted_samples import with_robust_covariances

SHOWN_WEIGHT = 0.1
"""Smaller components of a direction are left out of its sentence."""

MOST_SHOWN = 5
"""Components of a direction that its sentence has; of more, the largest."""

_LABEL = 21


@dataclass(frozen=True, eq=False)
class Certificate:
    """What was checked about the optimum of a fit; prints as text, and as HTML in notebooks.

    Parameters
    ----------
    formula
        Of the model.
    converged
        All checks passed.
    singular
        A covariance matrix of random effects is singular.
    status
        The optimiser's own account.
    iterations, evaluations
        Newton steps, and evaluations of value, gradient and Hessian, repeated starts included.
    parameters
        The optimiser's parameters (of the factors of the standardised columns, then free ones of a residual
        structure, called after the parameters that they are closest to) by name: ``value``,
        ``gradient`` of the deviance, ``scaled_gradient`` in units of its own curvature, ``on_boundary``.
    gradient_norm
        Largest scaled gradient of the free parameters.
    newton_decrement
        Decrease of the deviance that one more Newton step would bring.
    hessian_eigenvalues : (k_free,) array
        Of the Hessian of the free parameters scaled to unit diagonal, ascending.
    weakest
        The combination of variance parameters that the data determine least; None for a linear model.
    boundary
        What is on the boundary of its range, with the derivative of the deviance there.
    findings
        What is wrong or on a boundary, in words, each with what to do about it.
    agreement
        Where searches from random starts ended, if they were asked for.
    fit
        The fit itself.
    """

    formula: str
    converged: bool
    singular: bool
    status: str
    iterations: int
    evaluations: int
    parameters: pd.DataFrame
    gradient_norm: float
    newton_decrement: float
    hessian_eigenvalues: np.ndarray
    weakest: WeakDirection | None
    boundary: tuple[BoundaryComponent, ...]
    findings: tuple[Finding, ...]
    agreement: Agreement | None
    fit: Fitted = field(repr=False)

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue of the scaled Hessian; NaN without free parameters."""
        values = self.hessian_eigenvalues
        if not len(values):
            return float("nan")
        return float(values[-1] / values[0]) if values[0] > 0 else float("inf")

    @property
    def is_best(self) -> bool | None:
        """Whether no start led to a lower deviance than the fit's; None without further starts."""
        return None if self.agreement is None else self.agreement.improvement == 0

    def boundary_table(self) -> pd.DataFrame:
        """What is on the boundary: ``estimate``, ``derivative`` of the deviance there, ``is_minimum``."""
        return pd.DataFrame(
            {
                "estimate": [own.value for own in self.boundary],
                "derivative": [own.derivative for own in self.boundary],
                "is_minimum": [own.is_minimum for own in self.boundary],
            },
            index=pd.Index([own.parameter for own in self.boundary], name="parameter"),
        )

    def optima(self) -> pd.DataFrame:
        """Optima that the further starts led to, the lowest deviance first.

        Returns
        -------
        pandas.DataFrame
            Columns ``deviance``, ``above_fit`` (negative where it is lower than the fit's), ``starts`` that
            led there, ``same_parameters`` as the fit's (those of its starts that have them).
        """
        found = self._required_agreement()
        rows = [
            {
                "deviance": float(found.deviance[starts[0]]),
                "above_fit": float(found.deviance[starts[0]] - found.of_fit),
                "starts": len(starts),
                "same_parameters": int(found.same_parameters[starts].sum()),
            }
            for starts in found.optima()
        ]
        columns = ["deviance", "above_fit", "starts", "same_parameters"]
        return pd.DataFrame(rows, columns=columns, index=pd.RangeIndex(1, len(rows) + 1, name="optimum"))

    def refit(self) -> Any:
        """The model fitted from the best point that a further start led to.

        Returns
        -------
        MixedResults

        Raises
        ------
        DataError
            If no further starts were made, or none arrived at an optimum.
        """
        found = self._required_agreement()
        if not found.stationary.any():
            raise DataError("no further start arrived at an optimum; there is nothing to refit from")
        fit = self.fit
        estimates = fitting.fit(
            fit.state,
            design_of_fit(fit.frame, fit.estimates, fit.state).labels,
            fit.frame.x_names,
            method=fit.estimates.method,  # type: ignore[arg-type]
            weighted=fit.estimates.weighted,
            start=found.standard[found.best],
            residual_labels=None if fit.estimates.residual is None else fit.estimates.residual.labels,
            sampling=fit.estimates.sampling,
        )
        estimates = with_robust_covariances(fit.frame, fit.state, estimates)
        announce_verdicts(estimates, self.formula)
        make: Callable[..., Any] = type(fit)
        return make(frame=fit.frame, estimates=estimates, state=fit.state)

    def _required_agreement(self) -> Agreement:
        if self.agreement is None:
            raise DataError("no further starts were made: ask for them, fit.certificate(starts=8)")
        return self.agreement

    def facts(self) -> dict[str, Any]:
        """The checks as plain numbers and texts, for documents."""
        weak, agreement = self.weakest, self.agreement
        return {
            "gradient_tolerance": GRADIENT_TOLERANCE,
            "hessian_condition": self.condition_number,
            "weakest_direction": None
            if weak is None
            else {
                "weights": dict(zip(weak.names, weak.weights.tolist(), strict=True)),
                "std_error": weak.std_error,
                "curvature": weak.curvature,
            },
            "boundary": [
                {
                    "group": own.group,
                    "kind": own.kind,
                    "effects": list(own.effects),
                    "parameter": own.parameter,
                    "estimate": own.value,
                    "derivative": own.derivative,
                    "is_minimum": own.is_minimum,
                }
                for own in self.boundary
            ],
            "advice": [own.advice for own in self.findings],
        } | (
            {}
            if agreement is None
            else {
                "starts": {
                    "seed": agreement.seed,
                    "starts": len(agreement.deviance),
                    "reached": int(agreement.reached.sum()),
                    "improvement": agreement.improvement,
                    "optima": self.optima().to_dict("records"),
                }
            }
        )

    # As text

    def rows(self) -> list[tuple[str, str]]:
        """Labels and contents, in the order of print."""
        rows = [("Verdict", self._verdict())]
        rows += [("Optimiser", f"{self.status}; {counted(self.evaluations, 'evaluation')}")]
        if len(self.parameters):
            free = int((~self.parameters["on_boundary"]).sum())
            rows.append(("Parameters", f"{free} free, {len(self.parameters) - free} on the boundary"))
        if len(self.hessian_eigenvalues):
            rows += [
                (
                    "Scaled gradient",
                    f"{plain_number(self.gradient_norm, GRADIENT_SHOWN)} (tolerance {GRADIENT_TOLERANCE:g})",
                ),
                (
                    "Newton decrement",
                    f"{plain_number(self.newton_decrement, DECREMENT_SHOWN)} (of deviance, by one more step)",
                ),
                ("Hessian eigenvalues", self._spectrum()),
            ]
        if self.weakest is not None and len(self.weakest.names) > 1:
            rows.append(("Least determined", direction_in_words(self.weakest)))
        rows += [("On the boundary", bound_in_words(own)) for own in self.boundary]
        rows += self._agreement_rows()
        return [(label, printable(text)) for label, text in rows]

    def _verdict(self) -> str:
        if not len(self.fit.estimates.free):
            return "closed form: a linear model has no optimiser"
        verdict = "an optimum" if self.converged else "NOT CONVERGED"
        verdict += ", singular (on the boundary of the parameter space)" if self.singular else ""
        if self.is_best is False:
            verdict += ", but NOT THE BEST: another start led to a lower deviance"
        return verdict

    def _spectrum(self) -> str:
        values = [f"{value:.3g}" for value in self.hessian_eigenvalues]
        shown = ", ".join(values) if len(values) <= 6 else f"{values[0]}, {values[1]}, ..., {values[-1]}"
        return f"{shown} (unit diagonal; condition number {self.condition_number:.3g})"

    def _agreement_rows(self) -> list[tuple[str, str]]:
        found = self.agreement
        if found is None:
            return []
        total, reached = len(found.deviance), int(found.reached.sum())
        same = int((found.reached & found.same_parameters).sum())
        text = f"{reached} of {counted(total, 'random start')} reached the deviance of the fit"
        text += f", {'all' if same == reached > 1 else same} with its parameters" if reached else ""
        failed = total - int(found.stationary.sum())
        text += f"; {failed} did not converge" if failed else ""
        rows = [("Other starts", f"{text} (seed {found.seed})")]
        for optimum in self.optima().to_dict("records"):
            if abs(optimum["above_fit"]) <= found.tolerance:
                continue
            place = "below" if optimum["above_fit"] < 0 else "above"
            rows.append(
                (
                    "Another optimum",
                    f"deviance {number(optimum['deviance'], 8, 12)}, {abs(optimum['above_fit']):.4g} {place} "
                    f"the fit's, from {counted(int(optimum['starts']), 'start')}",
                )
            )
        return rows

    def __str__(self) -> str:
        title = wrapped(f"Convergence certificate: {printable(self.formula)}")
        lines = [
            wrapped(text, first=f"{label:<{_LABEL}}", indent=" " * _LABEL) for label, text in self.rows()
        ]
        found = [wrapped(f"{own.finding}. {own.advice}", first="- ", indent="  ") for own in self.findings]
        return "\n".join([title, "-" * WIDTH, *lines, *(["", *found] if found else [])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Fragment for notebooks and reports: every name is escaped."""
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left;font-weight:normal">{html.escape(label)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for label, text in self.rows()
        )
        found = "".join(
            f"<li>{html.escape(own.finding)}. {html.escape(own.advice)}</li>" for own in self.findings
        )
        return (
            f'<div class="jaxmixed-certificate"><table><tbody>{rows}</tbody></table>'
            f"{f'<ul>{found}</ul>' if found else ''}</div>"
        )


def direction_in_words(weak: WeakDirection) -> str:
    """The largest components of a direction, and its standard error.

    Examples
    --------
    >>> names = ("ln sd(g (Intercept))", "ln sd(Residual)")
    >>> direction_in_words(WeakDirection(names, np.array([0.8, -0.6]), 50.0, 0.2))
    '0.80 ln sd(g (Intercept)) - 0.60 ln sd(Residual) (std. error 0.2)'
    """
    order = [k for k in np.argsort(-np.abs(weak.weights)) if abs(weak.weights[k]) >= SHOWN_WEIGHT]
    parts = [
        f"{'-' if weak.weights[k] < 0 else '+'} {abs(weak.weights[k]):.2f} {weak.names[k]}" for k in order
    ]
    if len(parts) > MOST_SHOWN:
        parts = [*parts[:MOST_SHOWN], "..."]
    error = f"std. error {weak.std_error:.3g}" if np.isfinite(weak.std_error) else "undetermined"
    return f"{' '.join(parts).removeprefix('+ ')} ({error})"


def bound_in_words(own: BoundaryComponent) -> str:
    """One component on the boundary, and whether the deviance has its minimum there."""
    side = "a minimum there" if own.is_minimum else "NOT A MINIMUM: the deviance falls into the inside"
    return f"{own.parameter} = {own.value:.4g}, derivative of the deviance {own.derivative:+.3g}: {side}"


def certificate(fit: Fitted, starts: int = 0, seed: int = 0) -> Certificate:
    """Certificate of a fit; see `MixedResults.certificate`.

    Parameters
    ----------
    fit : MixedResults
    starts : int
        Random starts to search from.
    seed : int

    Returns
    -------
    Certificate

    Warns
    -----
    ConvergenceWarning
        If a start led to a lower deviance.
    """
    estimates, found = fit.estimates, fit.estimates.diagnostics
    agreement = None
    if isinstance(starts, bool) or (starts != 0 and len(estimates.free)):
        agreement = search_from_random_starts(fit.state, estimates, starts, seed)
    boundary = boundary_components(estimates)
    made = Certificate(
        formula=fit.frame.formula.text,
        converged=found.converged,
        singular=found.singular,
        status=found.status,
        iterations=found.iterations,
        evaluations=found.evaluations,
        parameters=_parameters(fit),
        gradient_norm=found.gradient_norm,
        newton_decrement=found.newton_decrement,
        hessian_eigenvalues=np.array(found.hessian_eigenvalues),
        weakest=weakest_direction(estimates),
        boundary=boundary,
        findings=findings(fit.frame, estimates, boundary, agreement),
        agreement=agreement,
        fit=fit,
    )
    if agreement is not None and agreement.improvement:
        warnings.warn(
            f"The fit of {printable(made.formula)!r} is not the best: a random start led to a deviance "
            f"lower by {agreement.improvement:.4g}. certificate(starts={len(agreement.deviance)}, "
            f"seed={agreement.seed}).refit() fits from there.",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    return made


def _parameters(fit: Fitted) -> pd.DataFrame:
    """The optimiser's parameters, their gradients, and which are held."""
    estimates = fit.estimates
    names = [
        f"{term.group}: {name}" for term in estimates.terms for name in term.covariance.names(term.names)
    ]
    if estimates.residual is not None:
        own = estimates.residual
        names += [f"{RESIDUAL}{name}" for name in free_names(own.covariance, own.labels)]
    gradient = np.array(estimates.diagnostics.gradient, dtype=np.float64)
    curvature = np.sqrt(np.abs(np.diagonal(estimates.hessian)))
    return pd.DataFrame(
        {
            "value": estimates.standard,
            "gradient": gradient,
            "scaled_gradient": gradient / np.maximum(curvature, SMALLEST_CURVATURE),
            "on_boundary": ~estimates.free,
        },
        index=pd.Index(names, name="parameter"),
    )
