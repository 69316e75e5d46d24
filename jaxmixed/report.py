"""A report of a fit: one HTML page that needs nothing else, for reading, printing and passing on.

The page is filled into a template of the package by jinja2, which escapes every value; pictures are embedded,
and a content security policy in the page forbids that anything else is loaded.
"""

from __future__ import annotations

import base64
import datetime
import importlib.util
import io
import os
import platform
import secrets
import sys
from importlib.metadata import version as version_of
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jaxmixed.certificate import Certificate
from jaxmixed.equations import equations, index_key
from jaxmixed.errors import DataError, JaxMixedError, printable
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import Table, number
from jaxmixed.plot_effects import figure_size
from jaxmixed.report_words import model_in_words
from jaxmixed.weighted_samples import is_pseudo_likelihood

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from jaxmixed.plots import Plots
    from jaxmixed.tables import Summary

ENDINGS = (".html", ".htm")
_MOST_VECTOR_ROWS = 1500
_DPI, _PIXELS = 144, 96  # of a picture made of pixels; of an inch in CSS
_PLACES = ("left", "center", "right")
_MOST_CATERPILLARS = 4


class _Fit(Fitted, Protocol):
    """What a report asks of a fit."""

    @property
    def plot(self) -> Plots: ...
    def certificate(self, starts: int = 0, seed: int = 0) -> Certificate: ...
    def summary(self, scale: Any = "variance", level: float = 0.95, ddf: str = "none") -> Summary: ...
    def icc(self, kind: Any = "correlation", level: float = 0.95) -> pd.DataFrame: ...
    def r2(self, level: float = 0.95) -> pd.DataFrame: ...
    def ranef(self) -> dict[str, pd.DataFrame]: ...


class Picture(NamedTuple):
    """An embedded picture: data URI, words for those who do not see it, caption, and size in pixels."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


def write_report(
    fit: _Fit,
    path: str | Path,
    *,
    level: float = 0.95,
    ddf: str = "none",
    title: str | None = None,
    figures: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the report of a fit; see `MixedResults.report`."""
    target = _checked_path(path, overwrite)
    _require("jinja2")
    if figures:
        _require("matplotlib")
    page = render(fit, level=level, ddf=ddf, title=title, figures=figures)
    # A reader never sees half a page: it is written beside its place, and then moved there.
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(page)
        os.replace(partial, target)
    except OSError as problem:
        raise DataError(f"the report {str(target)!r} cannot be written: {problem.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _checked_path(path: str | Path, overwrite: bool) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"path={path!r} must be the name of a file, such as 'report.html'")
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise DataError(f"a report is a page of HTML: the name {str(target)!r} must end in .html")
    if "\0" in str(target):
        raise DataError(f"{str(target)!r} is not a usable file name")
    if target.is_dir():
        raise DataError(f"{str(target)!r} is a directory; give a file name")
    if not target.parent.is_dir():
        raise DataError(f"there is no directory {str(target.parent)!r} for the report")
    if target.exists() and not overwrite:
        raise DataError(f"{str(target)!r} exists; pass overwrite=True to replace it")
    return target


def _require(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise DataError(f"a report needs {library}: pip install 'jaxmixed[report]'")


def render(
    fit: _Fit, *, level: float = 0.95, ddf: str = "none", title: str | None = None, figures: bool = True
) -> str:
    """The page of a report.

    Parameters
    ----------
    fit : MixedResults
    level : float
        Level of all intervals.
    ddf : str
        Degrees of freedom of the tests of coefficients.
    title : str, optional
    figures : bool
        Whether to draw the diagnostics.

    Returns
    -------
    str
        HTML; every name is escaped.
    """
    import jinja2

    summary, certificate = fit.summary(level=level, ddf=ddf), fit.certificate()
    frame = fit.frame
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files(__package__).joinpath("templates/report.html").read_text("utf-8")
    )
    values = {
        "title": printable(title or f"{frame.response_name}: {summary.title.split(' fitted')[0].lower()}"),
        "subtitle": summary.title,
        "formula": summary.formula,
        "warnings": summary.warnings,
        "converged": certificate.converged,
        "good_news": _good_news(fit),
        "words": model_in_words(fit, ddf),
        "equations": equations(fit),
        "index_key": index_key(fit),
        "fit_facts": summary.facts,
        "tables": summary.tables,
        "derived": _derived_tables(fit, level),
        "tests": summary.footer,
        "notes": summary.notes,
        "certificate": certificate.rows(),
        "findings": certificate.findings,
        "figures": pictures(fit, level) if figures else [],
        "session": _session(fit),
        "version": _own_version(),
    }
    return template.render(values) + "\n"


def _good_news(fit: _Fit) -> str:
    if not len(fit.estimates.free):
        return "The estimates are in closed form; no fixed effect was dropped."
    return "The fit converged: every check of the optimum passed, and no estimate is on a boundary."


def _derived_tables(fit: _Fit, level: float) -> list[Table]:
    """Intraclass correlations and R-squared, where they are defined."""
    found = []
    for title, ask in (("Intraclass correlation", fit.icc), ("R-squared", fit.r2)):
        try:
            table = ask(level=level)
        except JaxMixedError:
            continue
        if not fit.estimates.terms and title != "R-squared":
            continue
        limits = f"{100 * level:.12g}% conf."
        note = f" ({printable(table.attrs['note']).rstrip('.')})" if table.attrs.get("note") else ""
        rows = tuple(
            (printable(name), *(number(value, 4) for value in row))
            for name, row in zip(table.index, table.itertuples(index=False, name=None), strict=True)
        )
        header = ("", "Estimate", "Std. error", f"[{limits}", "interval]")
        found.append(Table(f"{title}{note}", header, rows))
    return found


def pictures(fit: _Fit, level: float) -> list[Picture]:
    """The panel of diagnostics, and predicted random effects that it does not show."""
    from matplotlib import pyplot, rc_context

    large = fit.estimates.nobs > _MOST_VECTOR_ROWS
    with rc_context({"svg.hashsalt": "jaxmixed"}):
        axes = fit.plot.diagnostics(level=level).ravel()
        titles = [
            text for ax in axes if (text := " ".join(str(ax.get_title(loc)) for loc in _PLACES).strip())
        ]
        caption = "Diagnostic plots of residuals and predicted random effects."
        alt = f"{caption} Panels: {'; '.join(titles)}.".replace("\n", ", ")
        drawn = [_picture(axes[0].figure, alt, caption, large)]
        pyplot.close(axes[0].figure)
        effects = fit.ranef()
        smallest = min(effects, key=lambda group: len(effects[group]), default=None)
        others = [
            (group, str(name))
            for group, table in effects.items()
            for place, name in enumerate(table.columns)
            if place or group != smallest  # the panel has that one
        ]
        if is_pseudo_likelihood(fit.estimates):
            others = []  # predictions have no errors
        drawn += [_caterpillar(fit, *which, effects, level) for which in others[:_MOST_CATERPILLARS]]
    return drawn


def _caterpillar(
    fit: _Fit, group: str, effect: str, effects: dict[str, pd.DataFrame], level: float
) -> Picture:
    from matplotlib.figure import Figure

    values = effects[group][effect]
    figure = Figure(figsize=figure_size(len(values)), layout="constrained")
    fit.plot.caterpillar(group, effect, level=level, ax=figure.add_subplot())
    caption = (
        f"Predicted random effects of {printable(group)}, {printable(effect)}, in order of size, with "
        f"{100 * level:.12g}% intervals."
    )
    low, high = (printable(values.index[place]) for place in (int(values.argmin()), int(values.argmax())))
    alt = f"{caption} {len(values):,} levels, from {values.min():.4g} ({low}) to {values.max():.4g} ({high})."
    return _picture(figure, alt, caption, len(values) > _MOST_VECTOR_ROWS)


def _picture(figure: Figure, alt: str, caption: str, large: bool) -> Picture:
    """A figure as a data URI: vectors where they are few, else pixels."""
    stream = io.BytesIO()
    kind, mime = ("png", "image/png") if large else ("svg", "image/svg+xml")
    metadata: dict[str, Any] = {"Software": None} if large else {"Date": None, "Creator": None}
    width, height = (int(_PIXELS * inches) for inches in figure.get_size_inches())
    figure.savefig(stream, format=kind, dpi=_DPI, metadata=metadata)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:{mime};base64,{data}", printable(alt), caption, width, height)


def _own_version() -> str:
    return str(sys.modules[__package__].__version__)


def _session(fit: _Fit) -> list[tuple[str, str]]:
    """What made the page, and how to make the fit again."""
    libraries = ", ".join(f"{name} {version_of(name)}" for name in ("jax", "numpy", "pandas"))
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return [
        ("Call", call_of(fit)),
        ("Data", printable(fit.frame.data_repr)),
        ("Versions", f"jaxmixed {_own_version()}, {libraries}, {system}"),
        ("Written", datetime.date.today().isoformat()),
    ]


def call_of(fit: Fitted) -> str:
    """The call that makes the fit, as far as the fit knows it.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> call_of(jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), method="ml"))
    'jaxmixed.mixed("Reaction ~ Days + (Days | Subject)", data, method="ml")'
    """
    frame, estimates = fit.frame, fit.estimates
    quoted = printable(frame.formula.text).replace("\\", "\\\\").replace('"', '\\"')
    parts = [f'"{quoted}"', "data", f'method="{estimates.method}"']
    given = [
        (term.group, term.covariance.name)
        for term in estimates.terms
        if len(term.names) > 1 and term.covariance.name != frame.groups[term.frame_index].term.structure
    ]
    if given:
        parts.append(
            f"covariance={{{', '.join(f'{printable(group)!r}: {name!r}' for group, name in given)}}}"
        )
    parts += ["weights=..."] if frame.weights is not None else []
    parts += [] if frame.sampling is None else frame.sampling.request.arguments
    return f"jaxmixed.mixed({', '.join(parts)})"
