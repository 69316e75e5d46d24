"""Commands that read and change the data: use, import delimited, generate, replace, keep, sort, xtset ...

Numbers are kept in double precision whatever storage type a new variable is given, except that a whole-number
type cuts decimals off and float rounds, as in Stata.

References
----------
StataCorp, Stata Data Management Reference Manual; Longitudinal-Data/Panel-Data Reference Manual, xtset.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd

from jaxmixed import datasets
from jaxmixed.errors import DataError, listed
from jaxmixed.files import load_data
from jaxmixed.stata_expressions import evaluate, one_by_one, uses_itself
from jaxmixed.stata_formats import count, general
from jaxmixed.stata_frame import Variables, storage_type, texts
from jaxmixed.stata_functions import is_text
from jaxmixed.stata_session import CommandSpec, Session, sort_codes
from jaxmixed.stata_syntax import Statement, Tokens, is_abbreviation
from jaxmixed.stata_tokens import Token
from jaxmixed.stata_trees import read

_WHOLE = {"byte": (-127, 100), "int": (-32_767, 32_740), "long": (-2_147_483_647, 2_147_483_620)}
_HARMLESS_SETTINGS = {
    "more": "", "seed": "", "matsize": "", "scheme": "", "linesize": "", "memory": "", "maxvar": "",
    "varabbrev": "on", "type": "double", "graphics": "", "rmsg": "", "trace": "off", "showbaselevels": "off",
}  # fmt: skip


def assignment(statement: Statement, tokens: Tokens, example: str) -> tuple[Tokens, Tokens]:
    """What stands before and after the first ``=``."""
    at = next((at for at, token in enumerate(tokens) if token.kind == "="), None)
    if not at or at + 1 == len(tokens):
        raise statement.error(tokens or None, f"{statement.command} is written as in '{example}'")
    return tokens[:at], tokens[at + 1 :]


def add_variable(session: Session, name: str, values: np.ndarray) -> None:
    """Add or replace a variable; the frame is a new one."""
    column = texts(values) if is_text(values) else pd.Series(np.asarray(values, dtype=np.float64))
    session.frame = (
        session.frame.assign(**{name: column}) if len(session.frame.columns) else pd.DataFrame({name: column})
    )


def only_token(statement: Statement, tokens: Tokens, what: str) -> Token:
    """The one token of a list."""
    if len(tokens) != 1:
        raise statement.error(tokens or None, f"{what} is needed here, and nothing else")
    return tokens[0]


def missing_in(values: np.ndarray) -> np.ndarray:
    """Rows in which a variable is missing.

    Examples
    --------
    >>> missing_in(np.array([1.0, np.nan]))
    array([False,  True])
    """
    return (values == "") if is_text(values) else np.isnan(values)


def _generate(session: Session, statement: Statement) -> None:
    left, right = assignment(statement, statement.arguments, "generate z = x + 1")
    kind, names = storage_type(left)
    token = only_token(statement, names, "the name of the new variable")
    name = session.variables(statement).new(token)
    values = _stored(statement, kind, session.values(statement, right), right)
    kept = session.sample(statement)
    values = np.where(kept, values, "" if is_text(values) else np.nan)
    add_variable(session, name, values)
    _tell_missing(session, values)


def _tell_missing(session: Session, values: np.ndarray) -> None:
    missing = int(missing_in(values).sum())
    if missing:
        session.write(f"({count(missing)} missing value{'' if missing == 1 else 's'} generated)")


def _stored(statement: Statement, kind: str | None, values: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Values as a storage type holds them."""
    if kind is not None and (kind in ("str", "strL")) != is_text(values):
        found = "texts" if is_text(values) else "numbers"
        raise statement.error(tokens, f"these are {found}, which storage type {kind} does not hold")
    if kind in _WHOLE:
        low, high = _WHOLE[kind]
        whole = np.trunc(values)
        return np.where((whole >= low) & (whole <= high), whole, np.nan)
    return values.astype(np.float32).astype(float) if kind == "float" else values


def _replace(session: Session, statement: Statement) -> None:
    left, right = assignment(statement, statement.arguments, "replace x = 0 if x < 0")
    token = only_token(statement, left, "the name of the variable")
    name = session.variables(statement).one(token)
    rows, node = session.rows(statement), read(statement, right)
    kept = session.sample(statement)
    old = rows.column(name)
    if uses_itself(node, name, rows.variables):
        new = one_by_one(rows, node, name, kept)
    else:
        values = rows.spread(evaluate(rows, right))
        if is_text(values) != is_text(old):
            kinds = ("texts", "numbers") if is_text(old) else ("numbers", "texts")
            raise statement.error(right, f"'{name}' holds {kinds[0]}, and these are {kinds[1]}")
        new = np.where(kept, values, old)
    gone_before, gone = missing_in(old), missing_in(new)
    changed = int(((new != old) & ~(gone & gone_before)).sum())
    to_missing = int((gone & ~gone_before).sum())
    if changed:
        add_variable(session, name, new)
        _forget_order(session, name)
    note = f", {count(to_missing)} to missing" if to_missing else ""
    session.write(f"({count(changed)} real change{'' if changed == 1 else 's'} made{note})")


def _forget_order(session: Session, *names: str) -> None:
    """The data are no longer sorted by these variables, nor by what follows them."""
    order = session.state.sorted_by
    first = next((at for at, name in enumerate(order) if name in names), len(order))
    session.state.sorted_by = order[:first]


def _keep(session: Session, statement: Statement) -> None:
    _select(session, statement, keep=True)


def _drop(session: Session, statement: Statement) -> None:
    _select(session, statement, keep=False)


def _select(session: Session, statement: Statement, keep: bool) -> None:
    word = "keep" if keep else "drop"
    has_rows = statement.condition is not None or statement.in_range is not None
    if has_rows == bool(statement.arguments):
        raise statement.error(
            statement.arguments or None, f"write either '{word} variables' or '{word} if condition'"
        )
    if has_rows:
        chosen = session.sample(statement)
        rows = np.flatnonzero(chosen == keep)
        deleted = len(session.frame) - len(rows)
        session.take(rows)
        session.write(f"({count(deleted)} observation{'' if deleted == 1 else 's'} deleted)")
        return
    if statement.prefixes and statement.prefix("by", "bysort"):
        raise statement.error(None, f"by needs '{word} if condition'")
    names = session.varlist(statement, statement.arguments)
    gone = [name for name in session.frame.columns if (name in names) != keep]
    session.frame = session.frame.drop(columns=gone)
    _forget_order(session, *gone)
    for name in gone:
        session.labels.pop(name, None)
    if session.panel and set(session.panel) & set(gone):
        session.state.panel = None


def _sort(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments)
    if not names:
        raise statement.error(None, "sort needs variables")
    session.sort(names)


def _gsort(session: Session, statement: Statement) -> None:
    variables = session.variables(statement)
    codes, names, sign = [], [], 1
    for token in statement.arguments:
        if token.kind in "+-":
            sign = -1 if token.kind == "-" else 1
            continue
        name = variables.one(token)
        ranks, missing = sort_codes(session.frame[name]), missing_in(session.frame[name].to_numpy())
        codes.append(np.where(missing, len(ranks) + 1, sign * ranks))
        names.append(name if sign == 1 else "")
        sign = 1
    if not names:
        raise statement.error(None, "gsort needs variables, as in 'gsort school -score'")
    session.take(np.lexsort(codes[::-1]))
    session.state.sorted_by = tuple(names[: names.index("")] if "" in names else names)


def _rename(session: Session, statement: Statement) -> None:
    tokens = statement.arguments
    if any(token.kind in "*?" for token in tokens):
        raise statement.error(tokens, "rename of patterns is not supported: rename one variable at a time")
    if tokens and tokens[0].kind == "(":
        inner = [i for i, token in enumerate(tokens) if token.kind == ")"]
        old, new = tokens[1 : inner[0]], tokens[inner[0] + 2 : -1]
        if len(inner) != 2 or len(old) != len(new) or tokens[inner[0] + 1].kind != "(":
            raise statement.error(tokens, "write as many new names as old ones: rename (a b) (c d)")
    else:
        if len(tokens) != 2:
            raise statement.error(tokens or None, "rename is written as in 'rename old new'")
        old, new = tokens[:1], tokens[1:]
    variables = session.variables(statement)
    olds = [variables.one(token) for token in old]
    rest = Variables(statement, tuple(name for name in session.frame.columns if name not in olds))
    table = {name: rest.new(token) for name, token in zip(olds, new, strict=True)}
    if len(table) < len(old) or len(set(table.values())) < len(new):
        raise statement.error(tokens, "a name stands there twice")
    session.frame = session.frame.rename(columns=table)
    session.state.labels = {table.get(name, name): of for name, of in session.labels.items()}
    session.state.sorted_by = tuple(table.get(name, name) for name in session.state.sorted_by)
    if session.panel:
        group, time = session.panel
        session.state.panel = table.get(group, group), table.get(time, time) if time else None


def _order(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments)
    session.frame = session.frame[[*names, *(n for n in session.frame.columns if n not in names)]]


def file_name(statement: Statement, tokens: Tokens | None, example: str) -> str:
    """A file's name, in quotation marks or without."""
    if not tokens:
        raise statement.error(None, f"the name of a file is missing: {example}")
    if any(token.kind == "text" for token in tokens):
        return only_token(statement, tokens, "one name of a file in quotation marks").value
    for before, after in itertools.pairwise(tokens):
        if before.end != after.start:
            raise statement.error(tokens, "put a file name with blanks in quotation marks")
    return statement.source(tokens)


def _check_clear(session: Session, statement: Statement) -> None:
    if len(session.frame.columns) and not statement.has("clear"):
        raise statement.error(None, f"there are data already: write '{statement.command} ..., clear'")


def _use(session: Session, statement: Statement) -> None:
    if statement.using:
        tokens, chosen = statement.using, statement.arguments
    else:
        tokens, chosen = statement.arguments, ()
    name = file_name(statement, tokens, "use data.dta, clear")
    _check_clear(session, statement)
    try:
        session.replace_data(name if re.search(r"\.\w+\Z", name) else _with_ending(name))
    except DataError as problem:
        raise statement.error(tokens, str(problem)) from None
    if chosen:
        session.frame = session.frame[session.varlist(statement, chosen)]
    if statement.condition is not None or statement.in_range is not None:
        session.take(np.flatnonzero(session.sample(statement)))


def _with_ending(name: str) -> str:
    """A bundled data set keeps its name, a file gets Stata's ending."""
    return name if name in datasets.names() else f"{name}.dta"


def _import_delimited(session: Session, statement: Statement) -> None:
    tokens = statement.using or statement.arguments
    if statement.using and statement.arguments:
        raise statement.error(
            statement.arguments, "new names for columns are not supported: rename them after"
        )
    name = file_name(statement, tokens, "import delimited data.csv, clear")
    for option, only in (("varnames", "1"), ("encoding", "utf-8")):  # what is done in any case
        given = statement.option(option)
        if given is not None and statement.source(given.argument or ()).strip('"').lower() != only:
            raise statement.error(given.argument, f"{option}() can only be {only}")
    _check_clear(session, statement)
    try:
        data = load_data(name if re.search(r"\.\w+\Z", name) else f"{name}.csv")
    except DataError as problem:
        raise statement.error(tokens, str(problem)) from None
    case = statement.option("case")
    style = "lower" if case is None else statement.source(case.argument or ()).strip('"')
    if style not in ("lower", "upper", "preserve"):
        raise statement.error(case.argument if case else None, "case() is lower, upper or preserve")
    names: list[str] = []
    for position, original in enumerate(data.columns, 1):
        clean = re.sub(r"\W", "", str(original))
        clean = {"lower": clean.lower(), "upper": clean.upper(), "preserve": clean}[style][:32]
        names.append(clean if clean.isidentifier() and clean not in names else f"v{position}")
    data.columns = pd.Index(names)
    session.replace_data(data)
    size = session.frame.shape
    session.write(f"({count(size[1])} var{'' if size[1] == 1 else 's'}, {count(size[0])} obs)")


def _clear(session: Session, statement: Statement) -> None:
    if statement.arguments and statement.source(statement.arguments) != "all":
        raise statement.error(statement.arguments, "write 'clear' or 'clear all'")
    session.replace_data(None)
    if statement.arguments:
        session.state.estimates = None
        session.state.stored = {}


def _xtset(session: Session, statement: Statement) -> None:
    if statement.has("clear"):
        session.state.panel = None
        return
    if not statement.arguments:
        if session.panel is None:
            raise statement.error(None, "nothing is set: write 'xtset id' or 'xtset id time'")
        names = [name for name in session.panel if name]
    else:
        names = session.varlist(statement, statement.arguments, numeric=True)
    if len(names) > 2:
        raise statement.error(
            statement.arguments, "xtset takes the variable of groups and perhaps that of times"
        )
    group, time = names[0], names[1] if len(names) == 2 else None
    frame = session.frame
    if time is not None:
        used = frame[[group, time]].dropna()
        if used.duplicated().any():
            row = used[used.duplicated()].iloc[0]
            raise statement.error(
                statement.arguments or None,
                f"repeated times within a group: {group} {row[group]:g} has {time} {row[time]:g} twice",
            )
        if not (used[time] == np.trunc(used[time])).all():
            raise statement.error(statement.arguments or None, f"'{time}' must hold whole numbers")
        session.sort([group, time])
    session.state.panel = group, time
    _show_panel(session, group, time)


def _show_panel(session: Session, group: str, time: str | None) -> None:
    frame = session.frame[[group] + ([time] if time else [])].dropna()
    sizes = frame.groupby(group).size()
    balanced = sizes.nunique() <= 1
    session.write()
    if time is None:
        session.write(f"Panel variable: {group} ({'balanced' if balanced else 'unbalanced'})")
        return
    low, high = frame[time].min(), frame[time].max()
    strongly = balanced and frame[time].nunique() == (sizes.iloc[0] if len(sizes) else 0)
    steps = frame.groupby(group)[time].diff().dropna()
    gaps = ", but with gaps" if (steps > 1).any() else ""
    kind = "strongly balanced" if strongly else "weakly balanced" if balanced else "unbalanced"
    session.write(f"Panel variable: {group} ({kind})")
    session.write(f" Time variable: {time}, {general(low)} to {general(high)}{gaps}")
    session.write("         Delta: 1 unit")


def _encode(session: Session, statement: Statement) -> None:
    variables = session.variables(statement)
    name = variables.one(only_token(statement, statement.arguments, "one variable of texts"))
    option = statement.option("generate")
    if option is None or not option.argument:
        raise statement.error(None, "encode is written as in 'encode region, generate(region_code)'")
    new = variables.new(only_token(statement, option.argument, "the name of the new variable"))
    if not session.is_text(name):
        raise statement.error(statement.arguments, f"'{name}' holds numbers already")
    kept = session.sample(statement)
    values = session.frame[name].to_numpy()
    levels = sorted({v for v, k in zip(values, kept, strict=True) if v and k}, key=lambda v: v.encode())
    codes = {level: float(code) for code, level in enumerate(levels, 1)}
    numbers = [codes.get(v, np.nan) if k else np.nan for v, k in zip(values, kept, strict=True)]
    add_variable(session, new, np.array(numbers, dtype=float))
    session.labels[new] = {code: level for level, code in codes.items()}


def _label_variable(session: Session, statement: Statement) -> None:
    """Labels of variables are checked and kept; no output shows them."""
    tokens = statement.arguments
    if len(tokens) not in (1, 2) or (len(tokens) == 2 and tokens[1].kind != "text"):
        raise statement.error(tokens or None, "write 'label variable x \"its meaning\"'")
    name = session.variables(statement).one(tokens[0])
    session.state.variable_labels[name] = tokens[1].value if len(tokens) == 2 else ""


def _label_define(session: Session, statement: Statement) -> None:
    tokens = statement.arguments
    table: dict[float, str] = {}
    at, sign = 1, 1
    while at < len(tokens):
        if tokens[at].kind == "-":
            at, sign = at + 1, -1
            continue
        if at + 1 >= len(tokens) or tokens[at].kind != "number" or tokens[at + 1].kind != "text":
            raise statement.error(
                tokens[at], 'write values and their labels: label define yesno 0 "no" 1 "yes"'
            )
        table[sign * float(tokens[at].value)] = tokens[at + 1].value
        at, sign = at + 2, 1
    if not table or tokens[0].kind != "name":
        raise statement.error(tokens or None, 'write \'label define yesno 0 "no" 1 "yes"\'')
    name = tokens[0].value
    if name in session.state.label_tables and not statement.has("replace", "modify", "add"):
        raise statement.error(tokens[0], f"the label '{name}' is defined already")
    old = {} if statement.has("replace") else session.state.label_tables.get(name, {})
    session.state.label_tables[name] = {**old, **table}


def _label_values(session: Session, statement: Statement) -> None:
    tokens = statement.arguments
    if len(tokens) < 2:
        raise statement.error(tokens or None, "write 'label values x yesno'")
    table = session.state.label_tables.get(tokens[-1].value)
    if table is None and tokens[-1].kind != ".":
        known = listed(session.state.label_tables) or "none"
        raise statement.error(tokens[-1], f"no label '{tokens[-1].value}' is defined; defined are {known}")
    for name in session.varlist(statement, tokens[:-1], numeric=True):
        if table is None:
            session.labels.pop(name, None)
        else:
            session.labels[name] = dict(table)


def _destring(session: Session, statement: Statement) -> None:
    names = session.varlist(statement, statement.arguments)
    if not names or not statement.has("replace"):
        raise statement.error(None, "destring is written as in 'destring x, replace'")
    for name in names:
        if not session.is_text(name):
            session.write(f"{name}: already numeric; no replace")
            continue
        values = pd.to_numeric(
            session.frame[name].where(session.frame[name].str.strip() != ""), errors="coerce"
        )
        bad = values.isna() & (session.frame[name].str.strip() != "") & (session.frame[name] != ".")
        if bad.any() and not statement.has("force"):
            raise statement.error(
                None,
                f"'{name}' holds texts that are no numbers, as {listed([session.frame[name][bad].iloc[0]])}",
            )
        add_variable(session, name, values.to_numpy(dtype=float))
        session.write(f"{name}: all characters numeric; replaced as double")


def _scalar(session: Session, statement: Statement) -> None:
    tokens = statement.arguments
    if len(tokens) > 1 and tokens[1].kind == "name" and is_abbreviation(tokens[0].value, "define", "de"):
        tokens = tokens[1:]
    left, right = assignment(statement, tokens, "scalar a = 1 + 2")
    name = only_token(statement, left, "a name")
    if name.kind != "name":
        raise statement.error(name, "a name is needed here")
    session.state.scalars[name.value] = session.scalar(statement, right)


def _set(session: Session, statement: Statement) -> None:
    """Settings without an effect on results are accepted."""
    if not statement.arguments or statement.arguments[0].value not in _HARMLESS_SETTINGS:
        token = statement.arguments[0] if statement.arguments else None
        raise statement.error(
            token, f"this setting is not supported; accepted are {', '.join(_HARMLESS_SETTINGS)}"
        )
    needed = _HARMLESS_SETTINGS[statement.arguments[0].value]
    value = statement.source(statement.arguments[1:])
    if needed and value != needed:
        raise statement.error(statement.arguments, f"only '{needed}' is supported")


def _nothing(session: Session, statement: Statement) -> None:
    """Commands that change no result."""


_CLEAR = {"clear": ("clear", False)}
_IMPORT = {**_CLEAR, "case": ("case", True), "varnames": ("varn", True), "encoding": ("enc", True)}
COMMANDS = {
    "generate": CommandSpec("g", _generate, condition=True, by=True),
    "replace": CommandSpec("replace", _replace, condition=True, by=True),
    "keep": CommandSpec("keep", _keep, condition=True, by=True),
    "drop": CommandSpec("drop", _drop, condition=True, by=True),
    "sort": CommandSpec("so", _sort, options={"stable": ("stable", False)}),
    "gsort": CommandSpec("gsort", _gsort),
    "rename": CommandSpec("ren", _rename),
    "order": CommandSpec("order", _order),
    "use": CommandSpec("u", _use, options=_CLEAR, using=True, condition=True),
    "import delimited": CommandSpec("import delim", _import_delimited, options=_IMPORT, using=True),
    "clear": CommandSpec("clear", _clear),
    "xtset": CommandSpec("xtset", _xtset, options=_CLEAR),
    "encode": CommandSpec("en", _encode, options={"generate": ("g", True)}, condition=True),
    "destring": CommandSpec(
        "destring", _destring, options={"replace": ("replace", False), "force": ("force", False)}
    ),
    "label variable": CommandSpec("la var", _label_variable),
    "label define": CommandSpec(
        "la de",
        _label_define,
        options={"replace": ("replace", False), "modify": ("modify", False), "add": ("add", False)},
    ),
    "label values": CommandSpec("la val", _label_values),
    "scalar": CommandSpec("sca", _scalar),
    "set": CommandSpec("set", _set),
    "version": CommandSpec("vers", _nothing),
    "compress": CommandSpec("compress", _nothing),
    "cls": CommandSpec("cls", _nothing),
}
