"""Bad verdicts on a fit, said aloud."""

import warnings

from jaxmixed.errors import (
    ConvergenceWarning,
    RankDeficientWarning,
    SingularFitWarning,
    printable,
    user_level,
)
from jaxmixed.estimates import Estimates

NEARLY_COLLINEAR = 1e8
"""Condition number of the scaled fixed-effects columns beyond which coefficients lose half their digits."""


def announce_verdicts(estimates: Estimates, formula: str) -> None:
    """Warn of every bad verdict; the same sentences stand at the top of the summary.

    Parameters
    ----------
    estimates : Estimates
    formula : str
        Its text.

    Warns
    -----
    RankDeficientWarning, ConvergenceWarning, SingularFitWarning
        At the line that called the caller.
    """
    checks = estimates.diagnostics

    def warn(message: str, category: type[Warning]) -> None:
        warnings.warn(printable(message), category, stacklevel=user_level())

    if checks.rank_deficient:
        warn(
            f"The fixed-effects columns are linearly dependent: dropped {', '.join(checks.rank_deficient)} "
            "(coefficient reported as NaN). The fit equals that of the model without them.",
            RankDeficientWarning,
        )
    elif checks.condition_number > NEARLY_COLLINEAR:
        warn(
            "The fixed-effects columns are nearly collinear (condition number "
            f"{checks.condition_number:.1g}): their coefficients may have few correct digits.",
            RankDeficientWarning,
        )
    if checks.messages:
        warn(f"The fit of {formula!r} may be wrong: {'; '.join(checks.messages)}.", ConvergenceWarning)
    if checks.singular:
        warn(
            f"The fit is singular: {'; '.join(checks.singular_terms)}. The estimates stand, but a simpler "
            "random part may serve.",
            SingularFitWarning,
        )
