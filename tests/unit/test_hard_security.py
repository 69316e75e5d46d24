"""Formulas, names and files from strangers: nothing in them runs, or reaches page or terminal raw."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.cli import main
from tests.support.fits import quietly
from tests.support.simulated import outcome, students, use_everything

HOSTILE = [
    "y ~ __import__('os').system('touch {marker}') + (1 | g)",
    "y ~ I(__import__('os').system('touch {marker}')) + (1 | g)",
    "y ~ {{__import__('os').system('touch {marker}')}} + (1 | g)",
    "y ~ np.savetxt('{marker}', x) + (1 | g)",
    "y ~ x.to_csv('{marker}') + (1 | g)",
    "y ~ x.__class__.__mro__ + (1 | g)",
    "y ~ open('{marker}', 'w') + (1 | g)",
    'y ~ exec(\'open("{marker}", "w")\') + (1 | g)',
    'y ~ eval(\'open("{marker}", "w")\') + (1 | g)',
    "y ~ pd.eval('x') + (1 | g)",
    "y ~ (lambda: open('{marker}', 'w'))() + (1 | g)",
    "y ~ [open('{marker}', 'w')] + (1 | g)",
    "y ~ x + (1 | __import__('os').system('touch {marker}'))",
    "y ~ x + (1 | g) ; open('{marker}', 'w')",
    "y ~ x + (1 | g)\nimport os; os.system('touch {marker}')",
    "open('{marker}', 'w') ~ x + (1 | g)",
    "y ~ log(open('{marker}', 'w')) + (1 | g)",
    'y ~ f\'{{open("{marker}", "w")}}\' + (1 | g)',
    "y ~ x @ open('{marker}', 'w') + (1 | g)",
    "y ~ offset(open('{marker}', 'w')) + (1 | g)",
    "y ~ `__import__('os').system('touch {marker}')` + (1 | g)",
    "y ~ print(x) + (1 | g)",
    "y ~ getattr(x, 'values') + (1 | g)",
    "y ~ os.system('touch {marker}') + (1 | g)",
    "$(touch {marker})",
    "`touch {marker}`",
]


@pytest.mark.parametrize("formula", HOSTILE)
def test_a_hostile_formula_is_an_error_and_runs_nothing(formula, tmp_path):
    marker = tmp_path / "marker"
    found = outcome(formula.format(marker=marker), students())
    assert isinstance(found.error, jm.FormulaError | jm.DataError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formula", HOSTILE)
def test_a_hostile_formula_on_the_command_line_is_one_line_and_runs_nothing(
    formula, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.csv"
    students().to_csv(data, index=False)
    before = data.read_bytes()
    assert main(["fit", str(data), formula.format(marker=tmp_path / "marker")]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("jaxmixed: ")
    assert errors.count("\n") == 1
    assert "internal error" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]
    assert data.read_bytes() == before


def test_a_column_with_a_hostile_name_is_data(tmp_path):
    name = f"__import__('os').system('touch {tmp_path / 'marker'}')"
    fit = quietly(f"y ~ `{name}` + (1 | g)", students().rename(columns={"x": name}))
    use_everything(fit)
    np.testing.assert_allclose(fit.params, quietly("y ~ x + (1 | g)", students()).params)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_caller_is_looked_up():
    secret = np.arange(150.0)
    found = outcome("y ~ secret + (1 | g)", students())
    assert isinstance(found.error, jm.DataError)
    assert "secret" in found.text
    assert outcome("y ~ np.log(x) + (1 | g)", students()).error is not None
    assert len(secret) == 150


def test_a_function_is_used_only_when_it_is_given():
    def halve(x):
        return x / 2

    assert "halve" in outcome("y ~ halve(x) + (1 | g)", students()).text
    fit = quietly("y ~ halve(x) + (1 | g)", students(), functions={"halve": halve})
    assert fit.params["halve(x)"] == pytest.approx(2 * quietly("y ~ x + (1 | g)", students()).params["x"])


def test_a_saved_pickle_is_refused_as_data(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    for name in ("data.pkl", "data.csv", "data.parquet", "data.feather", "data.dta", "data.xlsx"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb()))
        assert main(["fit", str(path), "y ~ x + (1 | g)"]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("jaxmixed: ")
        assert "internal error" not in errors
        assert errors.count("\n") == 1
        path.unlink()
    assert list(tmp_path.iterdir()) == []


# Names and labels


LABELS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\x00b",
    "a\rb",
    "line\nbreak",
    "\u202egnp.exe",
    '"quoted" & <b>',
    "\x9b31m",
)


class Tags(HTMLParser):
    """Names of the elements of a fragment, and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def assert_printable(text: str) -> None:
    raw = {c for c in text if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}
    assert not raw, [f"U+{ord(c):04X}" for c in raw]


def hostile_factors() -> pd.DataFrame:
    data = students(3)
    data["f"] = [LABELS[i % len(LABELS)] for i in range(len(data))]
    data["h"] = [f"{LABELS[code % len(LABELS)]}{code}" for code in data["g"]]
    return data


def test_labels_of_levels_reach_neither_page_nor_terminal_raw():
    fit = quietly("y ~ f + (1 | h)", hostile_factors())
    for scale in ("variance", "sd"):
        assert_printable(str(fit.summary(scale=scale)))
    assert_printable(repr(fit))
    page = fit.summary()._repr_html_()
    assert_printable(page)
    parser = Tags()
    parser.feed(page)
    assert not parser.tags & {"script", "img", "b", "iframe", "svg", "a"}
    assert not {name for name in parser.attributes if name.startswith("on")}


def test_labels_are_kept_as_they_are_in_the_results():
    fit = quietly("y ~ f + (1 | h)", hostile_factors())
    assert set(fit.ranef()["h"].index) == set(hostile_factors()["h"])
    assert "f<script>alert(1)</script>" in fit.params.index
    assert fit.predict({"f": [LABELS[0]], "h": [f"{LABELS[3]}3"]}).notna().all()


def test_warnings_and_errors_about_hostile_labels_are_printable():
    data = hostile_factors()
    found = outcome("y ~ f + f:x + x + (1 | h)", data.assign(x=(data["f"] == LABELS[2]).astype(float)))
    assert found.warnings
    for text in found.warnings:
        assert_printable(text)
    fit = quietly("y ~ 1 + (1 | h)", data)
    with pytest.raises(jm.JaxMixedError) as error:
        fit.predict({"h": ["\x1b[31mnew\x07"]})
    assert_printable(str(error.value))
    with pytest.raises(jm.JaxMixedError) as error:
        quietly("y ~ f + (1 | h)", data).predict({"h": [data["h"][0]], "f": ["\x1b[31mnew\x07"]})
    assert_printable(str(error.value))
    for text in (
        outcome("y ~ z + (1 | h)", data.rename(columns={"x": "\x1b[31mx"})).text,
        outcome("y ~ x + (1 | h)", data.assign(x=["\x1b[31m"] * 75 + [1.0] * 75)).text,
        outcome("f ~ x + (1 | h)", data).text,
        outcome("y ~ x + (1 | h)", data, covariance={"\x1b[31m": "identity"}).text,
        outcome("y ~ x + (1 | h)", data, covariance="\x1b[31m").text,
        outcome("y ~ x + (1 | h)", data, method="\x1b[31m").text,
        outcome("y ~ x + (1 | h)", data, missing="\x1b[31m").text,
    ):
        assert text
        assert_printable(text)


def test_the_command_line_prints_no_control_characters_of_the_data(tmp_path, capsys):
    path = tmp_path / "data.csv"
    # A CSV cannot hold a null character or a bare line break outside quotes.
    data = hostile_factors()
    keep = ~data["f"].str.contains("[\x00\r\n]")
    data[keep & ~data["h"].str.contains("[\x00\r\n]")].to_csv(path, index=False)
    assert main(["fit", str(path), "y ~ f + (1 | h)"]) == 0
    printed = capsys.readouterr()
    assert_printable(printed.out)
    assert_printable(printed.err)


# Side effects


def test_a_fit_draws_no_random_numbers_of_the_user():
    states = random.getstate(), np.random.get_state()[1].copy()
    use_everything(quietly("y ~ x + (x | g)", students(4, slope=0.7)))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_the_first_fit_of_a_process_leaves_the_users_random_numbers_alone():
    # JAX draws from NumPy's global generator while it is imported.
    code = (
        "import numpy as np, random\n"
        "before = np.random.get_state()[1].copy(), random.getstate()\n"
        "import jaxmixed as jm\n"
        "imported = np.random.get_state()[1].copy(), random.getstate()\n"
        "jm.mixed('Reaction ~ Days + (1 | Subject)', jm.datasets.load('sleepstudy'))\n"
        "fitted = np.random.get_state()[1].copy(), random.getstate()\n"
        "for after in (imported, fitted):\n"
        "    assert (before[0] == after[0]).all() and before[1] == after[1]\n"
    )
    root = Path(jm.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_the_same_fit_twice_has_the_same_bits():
    fits = [quietly("y ~ x + (x | g)", students(5, slope=0.7)) for _ in range(2)]
    assert fits[0].llf == fits[1].llf
    np.testing.assert_array_equal(fits[0].theta, fits[1].theta)
    np.testing.assert_array_equal(fits[0].fittedvalues, fits[1].fittedvalues)
    assert str(fits[0].summary()) == str(fits[1].summary())


def test_a_fit_prints_nothing_and_writes_nothing_where_it_runs(tmp_path):
    root = Path(jm.__file__).resolve().parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import jaxmixed as jm\n"
        "fit = jm.mixed('Reaction ~ Days + (1 | Subject)', jm.datasets.load('sleepstudy'))\n"
        "fit.ranef(), fit.varcorr, fit.summary()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
