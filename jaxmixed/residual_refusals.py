"""What does not hold where residuals are correlated, or differ in variance, is refused with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxmixed.errors import DesignError, printable

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates


def refuse_residual_structure(estimates: Estimates, why: str, instead: str) -> None:
    """Refuse a fit with a residual structure.

    Parameters
    ----------
    estimates : Estimates
    why : str
        What the method takes for granted, as a clause.
    instead : str
        What to do, as a clause.

    Raises
    ------
    DesignError

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days", jm.datasets.load("sleepstudy"), residuals="cs(Subject)")
    >>> refuse_residual_structure(fit.estimates, "labels change places between rows", "use lrtest")
    Traceback (most recent call last):
        ...
    jaxmixed.errors.DesignError: labels change places between rows, and the model has a residual structure \
(Exchangeable within Subject); use lrtest
    """
    own = estimates.residual
    if own is not None:
        text = printable(own.labels.text)
        raise DesignError(f"{why}, and the model has a residual structure ({text}); {instead}")
