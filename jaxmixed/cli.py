"""The command line: ``jaxmixed fit DATA FORMULA``, ``jaxmixed stata SCRIPT`` and ``jaxmixed datasets``.

Arguments are parsed before anything heavy is imported, so that help and mistakes are answered at once. Exit
status: 0 for a fit (a singular one too), 1 for an error of data, model or script, 2 for wrong usage, 130 when
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from jaxmixed import __version__
from jaxmixed.errors import JaxMixedError, JaxMixedWarning, StataError, printable

DDF = ("none", "satterthwaite", "kenward-roger", "residual", "between-within", "containment")
"""Methods of :mod:`jaxmixed.testing`, which is not imported only to print a help text."""

_SPINNER_AFTER = 0.5
_SPINNER = "|/-\\"
_FORMATS = {"plot": (".png", ".pdf", ".svg"), "report": (".html", ".htm")}
_LIBRARIES = {"plot": ("matplotlib",), "report": ("jinja2", "matplotlib")}
_STRUCTURES = ("unstructured", "independent", "identity", "exchangeable", "ar1", "toeplitz")
_FIT_EPILOG = """\
DATA is a bundled data set (see: jaxmixed datasets) or a file: .csv, .tsv, .txt (comma, semicolon or tab; also
.gz), .parquet, .feather, .dta, .xlsx.

examples:
  jaxmixed fit sleepstudy "Reaction ~ Days + (Days | Subject)"
  jaxmixed fit pupils.csv "score ~ ses + (1 + ses | school/class)" --method ml --json fit.json
  jaxmixed fit depression "change ~ arm*visit" --residuals "us(visit | patient)"
  jaxmixed fit trial.dta "y ~ arm*time + (1 | patient)" --categorical arm --plot patients.png
"""

_STATA_EPILOG = """\
The script is read and checked as a whole before its first command runs, and prints all or nothing: a command
that is misspelt, fails or is not of the subset ends with its line and column on the standard error and with
status 1. DATA is what `jaxmixed fit` takes; without it the script has to `use` a file.

examples:
  jaxmixed stata analysis.do --data pupils.dta
  jaxmixed stata schools.do --data classrooms --plot schools.png
  echo "mixed weight week || id: week, covariance(unstructured)" | jaxmixed stata - --data pig
"""


class _UsageError(Exception):
    """Arguments that contradict each other; exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int

    Examples
    --------
    >>> main(["datasets", "sleepstudy", "--describe"])  # doctest: +ELLIPSIS
    sleepstudy: ...
    0
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except _UsageError as problem:
        print(f"jaxmixed: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader (head, less) has enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxmixed: interrupted", file=sys.stderr)
        return 130
    except Exception as problem:
        if arguments.debug:
            raise
        print(f"jaxmixed: {_reason(problem)}", *_pointer(problem), sep="\n", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxmixed",
        description="Linear mixed (multilevel) models: fit them, print the table, save the results.",
    )
    parser.add_argument("--version", action="version", version=f"jaxmixed {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="fit a model and print its summary",
        epilog=_FIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_arguments(fit)
    _add_output_arguments(fit)
    fit.set_defaults(run=_fit)
    script = commands.add_parser(
        "stata",
        help="run a do-file of Stata's mixed, and of what goes with it, and print Stata's tables",
        epilog=_STATA_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_script_arguments(script)
    script.set_defaults(run=_stata)
    bundled = commands.add_parser(
        "datasets", help="list the bundled data sets, describe one, or print it as CSV"
    )
    bundled.add_argument("name", nargs="?", metavar="NAME", help="data set to print as CSV")
    bundled.add_argument("--describe", action="store_true", help="print its description instead")
    bundled.add_argument("--debug", action="store_true", help="show the traceback of an error")
    bundled.set_defaults(run=_datasets)
    return parser


def _add_model_arguments(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("data", metavar="DATA", help="bundled data set or file")
    fit.add_argument(
        "formula", metavar="FORMULA", help='model in lme4\'s notation, e.g. "y ~ x + (1 + x | group)"'
    )
    fit.add_argument(
        "--method", choices=("reml", "ml"), default="reml", help="estimation criterion (default: reml)"
    )
    fit.add_argument(
        "--covariance",
        action="append",
        default=[],
        type=_covariance,
        metavar="[GROUP=]STRUCTURE",
        help=f"covariance of the random effects: {', '.join(_STRUCTURES)}; repeat for several groups",
    )
    fit.add_argument(
        "--residuals",
        metavar="STRUCTURE",
        help='structure of the residuals, e.g. "us(visit | id)", "ar1(week | id)"; by default independent',
    )
    fit.add_argument(
        "--weights", metavar="COLUMN", help="precision weights: residual variance sigma^2 / weight"
    )
    fit.add_argument("--offset", metavar="COLUMN", help="column added to the linear predictor")
    fit.add_argument(
        "--categorical",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="numeric columns to take as factors",
    )


def _add_output_arguments(fit: argparse.ArgumentParser) -> None:
    fit.add_argument(
        "--level", type=_level, default=0.95, help="level of confidence intervals (default: 0.95)"
    )
    fit.add_argument(
        "--ddf",
        choices=DDF,
        default="none",
        help="denominator degrees of freedom of the tests of coefficients (default: none, normal tests)",
    )
    fit.add_argument(
        "--scale", choices=("variance", "sd"), default="variance", help="scale of the random effects shown"
    )
    fit.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="results as JSON, to a file or instead of the table",
    )
    fit.add_argument("--csv", metavar="FILE", help="table of all parameters as CSV")
    fit.add_argument(
        "--plot", metavar="FILE", help="caterpillar plot of the random effects (.png, .pdf, .svg)"
    )
    fit.add_argument(
        "--report", metavar="FILE", help="everything about the fit as one page, with diagnostics (.html)"
    )
    fit.add_argument("--force", action="store_true", help="overwrite files")
    fit.add_argument("--quiet", action="store_true", help="print no table")
    fit.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_script_arguments(script: argparse.ArgumentParser) -> None:
    script.add_argument("script", metavar="SCRIPT", help="do-file, or - for the standard input")
    script.add_argument("--data", metavar="DATA", help="bundled data set or file that the script starts with")
    script.add_argument(
        "--plot",
        metavar="FILE",
        help="where to save the script's figure (.png, .pdf, .svg); of several, NAME.png, NAME-2.png, ...",
    )
    script.add_argument("--force", action="store_true", help="overwrite files")
    script.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = -1.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1, such as 0.95")
    return level


def _covariance(text: str) -> tuple[str, str]:
    """Group (empty for all) and structure."""
    group, _, structure = text.rpartition("=")
    if structure not in _STRUCTURES:
        raise argparse.ArgumentTypeError(f"{structure!r} is not one of {', '.join(_STRUCTURES)}")
    return group.strip(), structure


def _package(name: str) -> ModuleType:
    """Import a module of the package; the heavy ones wait until the arguments are known to make sense."""
    return importlib.import_module(f"jaxmixed.{name}")


def _reason(problem: Exception) -> str:
    """One line that says what went wrong."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    if isinstance(problem, JaxMixedError | OSError):
        text = lines[0]
    elif isinstance(problem, MemoryError):
        text = f"out of memory: {lines[0]}"
    else:
        text = f"internal error ({type(problem).__name__}): {lines[0]}; run again with --debug and report it"
    return printable(text)


def _pointer(problem: Exception) -> list[str]:
    """Lines that point at the piece of a script at fault."""
    return [printable(line) for line in str(problem).splitlines()[1:]] if type(problem) is StataError else []


def _datasets(arguments: argparse.Namespace) -> None:
    library = _package("datasets")
    if arguments.name is not None and arguments.describe:
        print(library.describe(arguments.name))
    elif arguments.name is not None:
        library.load(arguments.name).to_csv(sys.stdout, index=False, lineterminator="\n")
    elif arguments.describe:
        print("\n\n".join(str(library.describe(name)) for name in library.names()))
    else:
        entries = [library.describe(name) for name in library.names()]
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            print(f"{entry.name:<{width}}  {entry.rows:>6} rows  {entry.title}")


def _fit(arguments: argparse.Namespace) -> None:
    named = {
        "json": arguments.json,
        "csv": arguments.csv,
        "plot": arguments.plot,
        "report": arguments.report,
    }
    outputs = _outputs(named, arguments.force, {arguments.data: "the data"})
    # jaxlib's C++ code would write its notices between the lines of the table.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        data = _as_factors(_package("files").load_data(arguments.data), arguments.categorical)
        options = {
            "method": arguments.method,
            "covariance": _covariance_option(arguments.covariance),
            "residuals": arguments.residuals,
            "weights": arguments.weights,
            "offset": arguments.offset,
        }
        result = _in_background(
            lambda: _package("model").mixed(arguments.formula, data, **options), quiet=arguments.quiet
        )
    to_stdout = arguments.json == "-"
    if to_stdout:
        print(_json_text(result, arguments.level, arguments.ddf))
    elif not arguments.quiet:
        print(result.summary(scale=arguments.scale, level=arguments.level, ddf=arguments.ddf))
    if to_stdout or arguments.quiet:
        # The summary would have said these.
        for message in dict.fromkeys(
            str(item.message) for item in caught if issubclass(item.category, JaxMixedWarning)
        ):
            print(f"jaxmixed: warning: {printable(message)}", file=sys.stderr)
    for option, path in outputs.items():
        _WRITERS[option](result, path, arguments)


def _outputs(named: dict[str, str | None], force: bool, sources: dict[str, str]) -> dict[str, Path]:
    """Files to write by their options, checked before the work is done; the sources are never written."""
    paths = {
        option: Path(name)
        for option, name in named.items()
        if name is not None and (option, name) != ("json", "-")
    }
    resolved = [path.resolve() for path in paths.values()]
    if len(set(resolved)) < len(resolved):
        raise _UsageError("two results cannot be written to the same file")
    for option, path in paths.items():
        if path.is_dir():
            raise _UsageError(f"--{option} {str(path)!r} is a directory; give a file name")
        if not path.parent.is_dir():
            raise _UsageError(f"--{option}: there is no directory {str(path.parent)!r}")
        for source, what in sources.items():
            if path.exists() and path.resolve() == Path(source).resolve():
                raise _UsageError(f"--{option} would overwrite {what} {str(path)!r}")
        formats = _FORMATS.get(option, ())
        if formats and path.suffix.lower() not in formats:
            ending = path.suffix or "files without an ending"
            raise _UsageError(f"--{option} writes {', '.join(formats)} files, not {ending!r}")
        _check_absent(path, force)
    for option, libraries in _LIBRARIES.items():
        for library in libraries if option in paths else ():
            if importlib.util.find_spec(library) is None:
                raise _UsageError(f"--{option} needs {library}: pip install 'jaxmixed[{option}]'")
    return paths


def _check_absent(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise _UsageError(f"{str(path)!r} exists; add --force to overwrite it")


def _covariance_option(pairs: list[tuple[str, str]]) -> str | dict[str, str] | None:
    if not pairs:
        return None
    if len(pairs) == 1 and not pairs[0][0]:
        return pairs[0][1]
    groups = [group for group, _ in pairs]
    if "" in groups or len(set(groups)) < len(groups):
        raise _UsageError(
            "--covariance: give one structure for all groups, or GROUP=STRUCTURE once for each group"
        )
    return dict(pairs)


def _as_factors(data: Any, names: list[str]) -> Any:
    unknown = [name for name in names if name not in data.columns]
    if unknown:
        raise _package("ingest").unknown_columns(unknown, data.columns)
    return data.assign(**{name: data[name].astype("category") for name in names}) if names else data


def _stata(arguments: argparse.Namespace) -> None:
    sources = {arguments.script: "the script", arguments.data: "the data"}
    sources = {name: what for name, what in sources.items() if name not in (None, "-")}
    outputs = _outputs({"plot": arguments.plot}, arguments.force, sources)
    script = _script(arguments.script)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        output = _in_background(
            lambda: _package("stata_commands").stata(script, arguments.data, echo=True), quiet=False
        )
    figures = _rendered(output.figures, outputs.get("plot"), arguments.force)
    print(output.text, end="")
    for message in dict.fromkeys(
        str(item.message) for item in caught if issubclass(item.category, JaxMixedWarning)
    ):
        print(f"jaxmixed: warning: {printable(message)}", file=sys.stderr)
    for path, contents in figures.items():
        path.write_bytes(contents)
    if bool(output.figures) != ("plot" in outputs):
        lacking = "the script draws no figure" if outputs else "add --plot FILE to save what the script draws"
        print(f"jaxmixed: note: {lacking}", file=sys.stderr)


def _script(name: str) -> str:
    """The text of a do-file, or of the standard input."""
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as problem:
        raise StataError(f"the script {name!r} cannot be read: {problem.strerror}") from None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as problem:
        line = raw[: problem.start].count(b"\n") + 1
        raise StataError(f"line {line} of the script is not UTF-8: save it in this encoding", line) from None


def _rendered(figures: list[Any], path: Path | None, force: bool) -> dict[Path, bytes]:
    """Contents of the files of figures, all made before the first is written."""
    found: dict[Path, bytes] = {}
    for number, figure in enumerate(figures if path is not None else [], 1):
        assert path is not None
        own = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        _check_absent(own, force)
        stream = io.BytesIO()
        figure.savefig(stream, format=own.suffix[1:].lower(), dpi=200)
        found[own] = stream.getvalue()
    return found


def _in_background(work: Callable[[], Any], *, quiet: bool) -> Any:
    """Result of a call made in a thread, so that Ctrl-C does not wait for compiled code."""
    done = threading.Event()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as problem:
            outcome["problem"] = problem
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        _wait(done, sys.stderr if sys.stderr.isatty() and not quiet else None)
    except KeyboardInterrupt:
        print("jaxmixed: interrupted", file=sys.stderr, flush=True)
        # Compiled code in the thread cannot be stopped, and must not delay the end of the process.
        os._exit(130)
    if "problem" in outcome:
        raise outcome["problem"]
    return outcome["value"]


def _wait(done: threading.Event, terminal: IO[str] | None) -> None:
    if terminal is None:
        while not done.wait(0.5):
            pass
        return
    if done.wait(_SPINNER_AFTER):
        return
    ticks = 0
    try:
        while not done.wait(0.1):
            ticks += 1
            terminal.write(f"\r{_SPINNER[ticks % 4]} fitting, {_SPINNER_AFTER + ticks / 10:.0f} s ")
            terminal.flush()
    finally:
        terminal.write("\r\x1b[K")
        terminal.flush()


def _json_text(result: Any, level: float, ddf: str) -> str:
    contents = {"jaxmixed": __version__, **_package("document").document(result, level, ddf)}
    return json.dumps(contents, indent=2, allow_nan=False, ensure_ascii=False)


def _write_json(result: Any, path: Path, arguments: argparse.Namespace) -> None:
    path.write_text(_json_text(result, arguments.level, arguments.ddf) + "\n", encoding="utf-8")


def _write_csv(result: Any, path: Path, arguments: argparse.Namespace) -> None:
    result.tidy(level=arguments.level, ddf=arguments.ddf).to_csv(path, index=False, lineterminator="\n")


def _write_plot(result: Any, path: Path, arguments: argparse.Namespace) -> None:
    _package("plots").save_caterpillar(result, path, arguments.level)


def _write_report(result: Any, path: Path, arguments: argparse.Namespace) -> None:
    result.report(path, level=arguments.level, ddf=arguments.ddf, overwrite=arguments.force)


_WRITERS: dict[str, Callable[[Any, Path, argparse.Namespace], None]] = {
    "json": _write_json,
    "csv": _write_csv,
    "plot": _write_plot,
    "report": _write_report,
}
