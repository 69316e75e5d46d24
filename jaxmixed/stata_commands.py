"""`stata`: run Stata commands on a table, print Stata's tables, keep the fitted models.

The commands of all modules are joined here; :class:`jaxmixed.stata_session.Session` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from jaxmixed import (
    stata_contrasts,
    stata_data,
    stata_describe,
    stata_egen,
    stata_estat,
    stata_estimates,
    stata_graphs,
    stata_linear,
    stata_margins,
    stata_mixed,
    stata_panels,
    stata_predict,
    stata_tests,
)
from jaxmixed.errors import StataError
from jaxmixed.stata_session import CommandSpec, Session

COMMANDS: dict[str, CommandSpec] = {
    **stata_data.COMMANDS,
    **stata_egen.COMMANDS,
    **stata_describe.COMMANDS,
    **stata_mixed.COMMANDS,
    **stata_linear.COMMANDS,
    **stata_panels.COMMANDS,
    **stata_estat.COMMANDS,
    **stata_estimates.COMMANDS,
    **stata_predict.COMMANDS,
    **stata_tests.COMMANDS,
    **stata_margins.COMMANDS,
    **stata_contrasts.COMMANDS,
    **stata_graphs.COMMANDS,
}
"""All commands by their full names."""


@dataclass(frozen=True, eq=False)
class StataOutput:
    """What a run of Stata commands printed, fitted and changed.

    Attributes
    ----------
    text : str
        The printed text; also ``str(output)``.
    fit : MixedResults or None
        The last fitted model; None after xtreg with re or fe, which are not fits by maximum likelihood.
    fits : dict of str to MixedResults
        Models by the names that ``estimates store`` gave them.
    data : pandas.DataFrame
        The data after the last command, labelled values as categories.
    results : dict of str to float or str
        Results by Stata's names, ``"e(ll)"`` and ``"r(mean)"``.
    figures : list
        Matplotlib figures in the order in which they were drawn.
    """

    text: str
    fit: Any
    fits: dict[str, Any]
    data: pd.DataFrame
    results: dict[str, float | str]
    figures: list[Any]

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


def stata(command: str, data: Any = None, *, echo: bool | None = None) -> StataOutput:
    """Run Stata commands: `mixed` and what modelling scripts need before and after it.

    Parameters
    ----------
    command : str
        One command, or the text of a do-file.
    data : DataFrame, mapping of columns, other table, or name of a data set or file, optional
        Never modified. Without it the commands have to ``use`` a file.
    echo : bool, optional
        Whether each command is printed before its output; by default if there are several.

    Returns
    -------
    StataOutput
        Prints as Stata's output; ``fit`` is the last model, an ordinary `MixedResults`.

    Raises
    ------
    StataError
        At the first command that cannot be read, is not of the subset, or fails: with line and column, and
        what is supported. All commands are read before the first is run.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> output = jm.stata("mixed wm || id:, reml stddeviations", jm.datasets.load("mini_wright"))
    >>> print(output.text.splitlines()[-3])
                    sd(Residual) |   19.91083   3.414679      14.22688    27.86565
    >>> round(float(output.fit.llf), 5)
    -180.37921
    """
    if not isinstance(command, str):
        raise StataError(f"the commands are {type(command).__name__}, not text")
    session = Session(COMMANDS, data)
    several = command.strip().count("\n") > 0 if echo is None else echo
    text = session.run(command, echo=several)
    return output_of(session, text)


def output_of(session: Session, text: str) -> StataOutput:
    """What a session leaves behind."""
    state = session.state
    results: dict[str, float | str] = {f"r({name})": value for name, value in state.r.items()}
    if state.estimates is not None:
        results |= {f"e({name})": value for name, value in state.estimates.e.items()}
    return StataOutput(
        text,
        None if state.estimates is None else state.estimates.fit,
        {name: estimates.fit for name, estimates in state.stored.items()},
        labelled_frame(session),
        results,
        list(state.figures),
    )


def labelled_frame(session: Session) -> pd.DataFrame:
    """The data with labelled values as categories."""
    frame = session.frame.copy()
    for name, labels in session.state.labels.items():
        if name in frame and frame[name].dropna().isin(list(labels)).all():
            codes = sorted(labels)
            frame[name] = pd.Categorical(frame[name].map(labels), [labels[code] for code in codes])
    return frame
