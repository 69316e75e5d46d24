"""One run of Stata commands: the data, the estimates, the results in r() and e(), and the printed text.

A command is a function of the session and its statement, registered by a `CommandSpec` that says what may
stand in the statement. The session reads and checks a whole script before its first command runs, and goes
back to where it was if a command fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.errors import JaxMixedError, StataError, listed
from jaxmixed.stata_expressions import Rows, evaluate, is_true
from jaxmixed.stata_frame import Variables, as_stata_frame
from jaxmixed.stata_syntax import (
    Level,
    Option,
    Prefix,
    Statement,
    Tokens,
    is_abbreviation,
    parse,
    resolved,
    suggestion,
)

OptionTable = Mapping[str, tuple[str, bool | None]]
"""From an option's full name to its shortest spelling, and whether parentheses must (True), must not (False)
or may (None) follow."""

_MACROS = "macros, loops and programs are not part of the subset: write out the commands"
_DOWNLOADS = "nothing is downloaded: pass the data, or use a file or a bundled data set by its name"
_FIGURES = "the figures are serrbar and marginsplot; draw others from Python"
_REFUSED = {
    "local": _MACROS, "global": _MACROS, "program": _MACROS, "forvalues": _MACROS, "foreach": _MACROS,
    "matrix": "results are numbers and numpy arrays of the fitted model in Python", "mata": _MACROS,
    "merge": "merge the data before", "append": "append the data before",
    "reshape": "reshape the data before", "collapse": "use egen with by() and tag()",
    "save": "the data are an attribute of what jaxmixed.stata returns",
    "melogit": "models other than the Gaussian linear one are not supported",
    "mepoisson": "models other than the Gaussian linear one are not supported",
    "meglm": "models other than the Gaussian linear one are not supported",
    "xtmixed": "it is the old name of mixed, with another default (reml): write mixed",
    "logit": "models other than the Gaussian linear one are not supported",
    "preserve": "select rows by if, or run two scripts", "restore": "select rows by if, or run two scripts",
    "webuse": _DOWNLOADS, "sysuse": _DOWNLOADS, "ssc": "there is nothing to install", "net": _DOWNLOADS,
    "twoway": _FIGURES, "scatter": _FIGURES, "histogram": _FIGURES,
    "do": "run each do-file by itself", "log": "the output is printed, or returned as text",
    "graph": "a figure is returned; save it from Python",
}  # fmt: skip


@dataclass(frozen=True)
class CommandSpec:
    """What a command accepts, and the function that runs it.

    Attributes
    ----------
    minimum : str
        Shortest spelling; of two words for a subcommand (``"est sto"`` of ``"estimates store"``).
    run : callable
        ``run(session, statement)``; the options of the statement have their full names.
    options, level_options : mapping
        `OptionTable` of the command, and of what may follow the comma of a ``||`` level. After the comma of
        any level the options of the command may stand, too; they are moved to the statement.
    condition, using, levels, by : bool
        Whether ``if`` and ``in``, ``using``, ``||`` levels, and the prefix ``by`` may stand.
    weights : tuple of str
        Full names of the kinds of weights that may stand.
    """

    minimum: str
    run: Callable[[Session, Statement], None]
    options: OptionTable = field(default_factory=dict)
    level_options: OptionTable = field(default_factory=dict)
    condition: bool = False
    using: bool = False
    levels: bool = False
    by: bool = False
    weights: tuple[str, ...] = ()


@dataclass
class Estimation:
    """What an estimation command leaves behind.

    Attributes
    ----------
    command : str
        Full name of the command.
    statement : Statement
    fit : MixedResults or object
        What later commands ask.
    sample : (n,) bool array
        Rows of the frame that were used, ``e(sample)``.
    e : dict
        Results by name, ``e(ll)`` under ``"ll"``: numbers and texts.
    b, se : dict
        Coefficients and their standard errors by Stata's names (``"ses"``, ``"2.race"``, ``"_cons"``).
    more : dict
        What only the module of the command reads.
    position : (n,) int array
        For each row of the frame its position among the rows of the fit, -1 outside of the sample; by default
        in the order of the frame.
    """

    command: str
    statement: Statement
    fit: Any
    sample: np.ndarray
    e: dict[str, float | str] = field(default_factory=dict)
    b: dict[str, float] = field(default_factory=dict)
    se: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    position: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.position is None:
            self.position = np.where(self.sample, np.cumsum(self.sample) - 1, -1)


@dataclass
class State:
    """What a command may change; a failed run goes back to a copy."""

    frame: pd.DataFrame
    labels: dict[str, dict[float, str]] = field(default_factory=dict)
    variable_labels: dict[str, str] = field(default_factory=dict)
    label_tables: dict[str, dict[float, str]] = field(default_factory=dict)
    sorted_by: tuple[str, ...] = ()
    panel: tuple[str, str | None] | None = None
    estimates: Estimation | None = None
    stored: dict[str, Estimation] = field(default_factory=dict)
    fits: list[Any] = field(default_factory=list)
    figures: list[Any] = field(default_factory=list)
    scalars: dict[str, float | str] = field(default_factory=dict)
    r: dict[str, float | str] = field(default_factory=dict)
    output: list[str] = field(default_factory=list)


class Session:
    """Data, estimates and output of a run of commands.

    Parameters
    ----------
    commands : mapping of str to CommandSpec
        By full names; ``"estimates store"`` for a subcommand.
    data : DataFrame, mapping or other table, optional
        Copied; without data the script has to ``use`` some.
    """

    def __init__(self, commands: Mapping[str, CommandSpec], data: Any = None) -> None:
        self.commands = dict(commands)
        frame, labels = as_stata_frame(data)
        self.state = State(frame, labels)
        self.quiet = False

    # What commands read and change. ------------------------------------------------------------

    @property
    def frame(self) -> pd.DataFrame:
        """The data: numbers in float64 with NaN for missing ones, texts as str; rows are 0, 1, ...

        To be replaced by a new frame, never changed in place.
        """
        return self.state.frame

    @frame.setter
    def frame(self, frame: pd.DataFrame) -> None:
        self.state.frame = frame.reset_index(drop=True)

    @property
    def estimates(self) -> Estimation | None:
        """The current estimation results."""
        return self.state.estimates

    @estimates.setter
    def estimates(self, estimates: Estimation | None) -> None:
        self.state.estimates = estimates
        if estimates is not None:
            self.state.fits.append(estimates.fit)

    @property
    def stored(self) -> dict[str, Estimation]:
        """Estimation results by the names that ``estimates store`` gave them."""
        return self.state.stored

    @property
    def r(self) -> dict[str, float | str]:
        """Results of the last general command: ``session.r = {"mean": 1.0}`` sets them."""
        return self.state.r

    @r.setter
    def r(self, results: Mapping[str, float | str]) -> None:
        self.state.r = dict(results)

    @property
    def labels(self) -> dict[str, dict[float, str]]:
        """Labels of the values of variables."""
        return self.state.labels

    @property
    def panel(self) -> tuple[str, str | None] | None:
        """What ``xtset`` said: the variables of the groups and of the times."""
        return self.state.panel

    @property
    def text(self) -> str:
        """All that was printed."""
        return "".join(self.state.output)

    def write(self, text: str = "") -> None:
        """Print a line, or several; nothing under ``quietly``."""
        if not self.quiet:
            self.state.output.append(text + "\n")

    def need_estimates(self, statement: Statement, *commands: str) -> Estimation:
        """The current estimation results; an error without them, or if another command made them."""
        found = self.state.estimates
        if found is None:
            raise statement.error(None, "there are no estimation results yet: fit a model first, as by mixed")
        if commands and found.command not in commands:
            raise statement.error(
                None,
                f"{statement.command} is not available after {found.command}: fit a model by"
                f" {' or '.join(commands)}",
            )
        return found

    # What statements name. ---------------------------------------------------------------------

    def variables(self, statement: Statement) -> Variables:
        """Reader of names of variables, for errors of one statement."""
        return Variables(statement, tuple(self.frame.columns))

    def varlist(self, statement: Statement, tokens: Tokens, numeric: bool = False) -> list[str]:
        """Full names of existing variables: abbreviations, ``x*``, ``a-d``, ``_all``; none without tokens."""
        found = self.variables(statement).existing(tokens)
        if numeric:
            for name, token in found:
                if self.is_text(name):
                    raise statement.error(token, f"'{name}' holds texts where numbers are needed")
        return [name for name, _ in found]

    def is_text(self, name: str) -> bool:
        """Whether a variable holds texts."""
        return self.frame[name].dtype.kind != "f"

    def sample(self, statement: Statement) -> np.ndarray:
        """Rows that ``if`` and ``in`` leave.

        Returns
        -------
        (n,) bool array
        """
        rows = self.rows(statement)
        kept = rows.range(statement.in_range) if statement.in_range is not None else np.ones(rows.size, bool)
        if statement.condition is not None:
            kept &= is_true(rows, evaluate(rows, statement.condition), statement.condition)
        return kept

    def rows(self, statement: Statement) -> Rows:
        """The rows as expressions of a statement see them; a ``by`` prefix numbers them within groups."""
        estimates = self.state.estimates
        return Rows(
            statement=statement,
            frame=self.frame,
            groups=self._by_groups(statement),
            scalars=self.state.scalars,
            r=self.state.r,
            e=estimates.e if estimates else None,
            b=estimates.b if estimates else None,
            se=estimates.se if estimates else None,
            sample=estimates.sample if estimates else None,
        )

    def values(self, statement: Statement, tokens: Tokens) -> np.ndarray:
        """An expression, evaluated in each row.

        Returns
        -------
        (n,) float array, NaN where missing, or (n,) object array of str
        """
        rows = self.rows(statement)
        return rows.spread(evaluate(rows, tokens))

    def scalar(self, statement: Statement, tokens: Tokens) -> float | str:
        """An expression without rows (variables stand for their first row, as in Stata)."""
        rows = self.rows(statement)
        value = rows.spread(evaluate(rows, tokens), at_least=1)[0]
        return value if isinstance(value, str) else float(value)

    def weights(self, statement: Statement) -> np.ndarray | None:
        """The expression of the statement's weight in each row, or None."""
        return None if statement.weight is None else self.values(statement, statement.weight.expression)

    def _by_groups(self, statement: Statement) -> tuple[str, ...]:
        prefix = statement.prefix("by", "bysort")
        return tuple(by_variables(self, statement, prefix)[0]) if prefix else ()

    # Running. ------------------------------------------------------------------------------------

    def run(self, text: str, echo: bool = False) -> str:
        """Run a script and return what it printed.

        Parameters
        ----------
        text : str
            One command or many.
        echo : bool, default False
            Whether each command is printed after ``. `` before its output.

        Raises
        ------
        StataError
            At the first statement that cannot be read, is not of the subset or fails; the session is then as
            it was before.
        """
        prepared = [self.prepared(statement) for statement in parse(text)]
        before, first = self._copy(), len(self.state.output)
        try:
            for statement, spec in prepared:
                self._one(statement, spec, echo)
        except BaseException:
            self.state, self.quiet = before, False
            raise
        return "".join(self.state.output[first:])

    def _copy(self) -> State:
        """The state, with dictionaries and lists of its own; frames are never changed in place."""
        return State(**{name: copy.copy(value) for name, value in vars(self.state).items()})

    def _one(self, statement: Statement, spec: CommandSpec, echo: bool) -> None:
        if echo:
            self.write(f". {statement.text}")
        quiet = statement.prefix("quietly", "noisily")
        self.quiet = any(p.name == "quietly" for p in statement.prefixes) if quiet else False
        try:
            self._sort_for(statement)
            spec.run(self, statement)
        except StataError:
            raise
        except JaxMixedError as problem:
            raise statement.error(None, f"{statement.command}: {problem}") from problem
        finally:
            self.quiet = False
        if echo:
            self.write()

    def _sort_for(self, statement: Statement) -> None:
        """Sort as ``bysort`` asks, or check that ``by`` finds the rows sorted."""
        prefix = statement.prefix("by", "bysort")
        if prefix is None:
            return
        names, further = by_variables(self, statement, prefix)
        if prefix.name == "bysort" or any(option.name == "sort" for option in prefix.options):
            self.sort([*names, *further])
        elif list(self.state.sorted_by[: len(names)]) != names:
            raise statement.error(
                prefix.token, "the data are not sorted so: write bysort, or sort them before"
            )

    def sort(self, names: list[str]) -> None:
        """Sort the rows by variables, missing numbers last; rows that tie keep their order."""
        codes = [sort_codes(self.frame[name]) for name in names]
        self.take(np.lexsort(codes[::-1]) if codes else np.arange(len(self.frame)))
        self.state.sorted_by = tuple(names)

    def take(self, order: np.ndarray) -> None:
        """Keep the rows of these positions, in this order; the samples of estimates follow."""
        self._move_samples(order)
        self.frame = self.frame.iloc[order]

    def replace_data(self, data: Any) -> None:
        """Put other data in place of all: without order and old labels, and no row of them was used."""
        self.state.frame, self.state.labels = as_stata_frame(data)
        self.state.variable_labels, self.state.label_tables = {}, {}
        self.state.sorted_by, self.state.panel = (), None
        self._move_samples(None)

    def _move_samples(self, order: np.ndarray | None) -> None:
        """Let ``e(sample)`` of all estimates follow the rows; None: no row is one of theirs."""
        size = len(self.frame)
        moved: dict[int, Estimation] = {}
        for estimates in (self.state.estimates, *self.stored.values()):
            if estimates is None or id(estimates) in moved:
                continue
            sample, position = np.zeros(size, dtype=bool), np.full(size, -1)
            if order is not None and estimates.position is not None:
                sample, position = estimates.sample[order], estimates.position[order]
            moved[id(estimates)] = replace(estimates, sample=sample, position=position)
        if self.state.estimates is not None:
            self.state.estimates = moved[id(self.state.estimates)]
        self.state.stored = {name: moved[id(estimates)] for name, estimates in self.stored.items()}

    # Checking before anything runs. ------------------------------------------------------------------

    def prepared(self, statement: Statement) -> tuple[Statement, CommandSpec]:
        """The statement with full names of command and options, and its specification.

        Raises
        ------
        StataError
            If the command, an option or another part is not of the subset.
        """
        name, spec, statement = self._command(statement)
        options = list(statement.options)
        levels: list[Level] = []
        for level in statement.levels:
            own, further = _told_apart(statement, level.options, spec, name)
            levels.append(replace(level, options=own))
            options += further
        statement = replace(
            statement,
            command=name,
            options=resolved(statement, tuple(options), spec.options, name),
            levels=tuple(levels),
        )
        _check_parts(statement, spec)
        return statement, spec

    def _command(self, statement: Statement) -> tuple[str, CommandSpec, Statement]:
        word, token = statement.command, statement.name_token
        families: dict[str, str] = {}
        for name, spec in self.commands.items():
            first, _, second = name.partition(" ")
            if second:
                families[first] = spec.minimum.split()[0]
        first_names = {name: spec.minimum for name, spec in self.commands.items() if " " not in name}
        family = next((f for f, least in families.items() if is_abbreviation(word, f, least)), None)
        if family and statement.arguments and statement.arguments[0].kind == "name":
            sub = statement.arguments[0]
            for name, spec in self.commands.items():
                first, _, second = name.partition(" ")
                if first == family and second and is_abbreviation(sub.value, second, spec.minimum.split()[1]):
                    return name, spec, replace(statement, arguments=statement.arguments[1:])
        full = word if word in first_names else None
        full = full or next((n for n, least in first_names.items() if is_abbreviation(word, n, least)), None)
        if full is not None:
            return full, self.commands[full], statement
        if family:
            seconds = [name.split()[1] for name in self.commands if name.startswith(family + " ")]
            wrong = statement.arguments[0] if statement.arguments else token
            hint = suggestion(wrong.value, seconds) or ":"
            raise statement.error(wrong, f"{family} needs one of its subcommands{hint} {', '.join(seconds)}")
        known = sorted({name.split()[0] for name in self.commands})
        why = f": {_REFUSED[word]}." if word in _REFUSED else suggestion(word, known) or "."
        raise statement.error(
            token, f"'{word}' is not a supported command{why} Supported are {', '.join(known)}"
        )


def _told_apart(
    statement: Statement, options: tuple[Option, ...], spec: CommandSpec, name: str
) -> tuple[tuple[Option, ...], list[Option]]:
    """Options of a level, and those of the whole command that stand there."""
    own: list[Option] = []
    further: list[Option] = []
    for option in options:
        is_own = any(is_abbreviation(option.name, n, least) for n, (least, _) in spec.level_options.items())
        is_whole = any(is_abbreviation(option.name, n, least) for n, (least, _) in spec.options.items())
        (further if is_whole and not is_own else own).append(option)
    unknown = [
        o for o in own if not any(is_abbreviation(o.name, n, t[0]) for n, t in spec.level_options.items())
    ]
    if unknown:  # name the options of both in the error
        resolved(statement, (unknown[0],), {**spec.level_options, **spec.options}, name)
    return resolved(statement, tuple(own), spec.level_options, f"a level of {name}"), further


def _check_parts(statement: Statement, spec: CommandSpec) -> None:
    """Refuse parts that the command does not have."""
    name = statement.command
    if (statement.condition or statement.in_range) and not spec.condition:
        raise statement.error(statement.condition or statement.in_range, f"{name} takes no 'if' and no 'in'")
    if statement.using and not spec.using:
        raise statement.error(statement.using, f"{name} takes no 'using'")
    if statement.levels and not spec.levels:
        raise statement.error(statement.levels[0].bar, f"{name} takes no '||': levels belong to mixed")
    if statement.weight and statement.weight.kind not in spec.weights:
        kinds = listed(spec.weights) if spec.weights else "none"
        raise statement.error(
            statement.weight.token, f"{name} does not support {statement.weight.kind}s; it supports {kinds}"
        )
    prefix = statement.prefix("by", "bysort")
    if prefix and not spec.by:
        raise statement.error(
            prefix.token, f"{name} cannot be run by groups; generate, replace, egen and summarize can"
        )


def by_variables(session: Session, statement: Statement, prefix: Prefix) -> tuple[list[str], list[str]]:
    """Variables of a by prefix: those that make the groups, and those in parentheses that only sort."""
    tokens = prefix.arguments
    opening = next((at for at, token in enumerate(tokens) if token.kind == "("), len(tokens))
    if opening < len(tokens) and tokens[-1].kind != ")":
        raise statement.error(tokens[-1], "the variables in parentheses stand last in a by prefix")
    for option in prefix.options:
        if option.name not in ("sort", "sor", "so", "s") or option.argument is not None:
            raise statement.error(option.token, "the only option of by is sort")
    names = session.varlist(statement, tokens[:opening])
    if not names:
        raise statement.error(prefix.token, f"'{prefix.name}' needs variables, as in 'bysort school: ...'")
    return names, session.varlist(statement, tokens[opening + 1 : -1]) if opening < len(tokens) else []


def sort_codes(column: Iterable[Any]) -> np.ndarray:
    """Numbers that sort as the values of a variable do: missing numbers last, texts by their characters.

    Examples
    --------
    >>> sort_codes(pd.Series([2.0, float("nan"), 1.0]))
    array([1, 2, 0])
    """
    values = pd.Series(column)
    codes, levels = pd.factorize(values, sort=True)
    return np.where(codes < 0, len(levels), codes)
