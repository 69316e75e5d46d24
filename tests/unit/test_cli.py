"""The command line: output, files, exit statuses, one-line errors; reading data files."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import cli, files
from jaxmixed.files import load_data
from jaxmixed.testing import TITLES
from tests.support.fits import sleepstudy

FORMULA = "Reaction ~ Days + (Days | Subject)"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in an empty folder; gives exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as stop:  # argparse leaves this way
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def data_file(name: str = "data.csv") -> pd.DataFrame:
    data = jm.datasets.load("sleepstudy")
    data.to_csv(name, index=False)
    return data


# Fits


def test_a_fit_prints_the_summary(run: Run) -> None:
    status, out, err = run("fit", "sleepstudy", FORMULA)
    assert (status, err) == (0, "")
    assert out == f"{sleepstudy().summary()}\n"


def test_tests_have_the_degrees_of_freedom_asked_for(run: Run) -> None:
    status, out, _ = run("fit", "sleepstudy", FORMULA, "--ddf", "kenward-roger", "--csv", "table.csv")
    assert status == 0
    assert out == f"{sleepstudy().summary(ddf='kenward-roger')}\n"
    assert pd.read_csv("table.csv")["df"][:2].round(8).tolist() == [17.0, 17.0]
    status, out, _ = run("fit", "sleepstudy", FORMULA, "--ddf", "kenward-roger", "--json")
    assert json.loads(out)["coefficients"][1]["df"] == pytest.approx(17)
    status, _, err = run("fit", "sleepstudy", FORMULA, "--ddf", "kenward-roger", "--method", "ml")
    assert status == 1
    assert "one for REML fits" in err


def test_the_command_line_knows_every_method() -> None:
    assert tuple(TITLES) == cli.DDF


def test_options_reach_the_model(run: Run) -> None:
    data_file()
    arguments = ("--method", "ml", "--covariance", "Subject=independent", "--level", "0.9", "--scale", "sd")
    status, out, _ = run(
        "fit", "data.csv", FORMULA, *arguments, "--categorical", "Subject", "--weights", "Days"
    )
    assert status == 1  # a weight of zero
    status, out, _ = run(
        "fit", "data.csv", FORMULA, *arguments, "--categorical", "Subject", "--offset", "Days"
    )
    assert status == 0
    for piece in (
        "maximum likelihood (ML)",
        "Subject (independent)",
        "[90% conf.",
        "an offset is part",
        "SD / corr.",
    ):
        assert piece in out


def test_numbers_become_factors_on_request(run: Run) -> None:
    data_file()
    _, out, _ = run("fit", "data.csv", "Reaction ~ Days + (1 | Subject)", "--categorical", "Days")
    assert "\nDays9 " in out


def test_a_singular_fit_succeeds_and_says_singular(run: Run) -> None:
    status, out, err = run("fit", "dyestuff2", "Yield ~ 1 + (1 | Batch)")
    assert (status, err) == (0, "")
    assert "WARNING: the fit is singular" in out
    status, out, err = run("fit", "dyestuff2", "Yield ~ 1 + (1 | Batch)", "--quiet")
    assert (status, out) == (0, "")
    assert err.startswith("jaxmixed: warning: ")
    assert "singular" in err
    assert err.count("\n") == 1


def reject(constant: str) -> float:
    raise AssertionError(f"{constant} is not valid JSON")


def test_json_is_strictly_valid_and_complete(run: Run) -> None:
    status, out, _ = run("fit", "dyestuff2", "Yield ~ 1 + (1 | Batch)", "--json")
    assert status == 0
    found = json.loads(out, parse_constant=reject)
    assert list(found) == [
        "jaxmixed",
        "formula",
        "method",
        "level",
        "ddf",
        "fit",
        "groups",
        "coefficients",
        "varcorr",
        "residual",
        "linear_model_test",
        "diagnostics",
    ]
    assert found["varcorr"][0]["estimate"] == 0
    assert found["varcorr"][0]["std_error"] is None
    assert found["varcorr"][1]["effect"] is None
    assert found["coefficients"][0]["term"] == "(Intercept)"
    assert found["coefficients"][0]["df"] is None
    assert found["fit"]["llf"] == pytest.approx(-161.828278 / 2, rel=1e-7)
    assert found["groups"] == [{"group": "Batch", "levels": 6, "min": 5, "mean": 5.0, "max": 5}]
    assert found["linear_model_test"]["distribution"] == "chibar2(01)"
    assert found["diagnostics"]["singular"] is True
    assert found["diagnostics"]["converged"] is True


def test_results_are_written_to_files(run: Run) -> None:
    status, out, _ = run(
        "fit", "sleepstudy", FORMULA, "--json", "a.json", "--csv", "a.csv", "--plot", "a.png", "--quiet"
    )
    assert (status, out) == (0, "")
    assert json.loads(Path("a.json").read_text())["fit"]["nobs"] == 180
    written, table = pd.read_csv("a.csv"), sleepstudy().tidy()
    assert written["term"].tolist() == table["term"].tolist()
    np.testing.assert_allclose(written["estimate"], table["estimate"], rtol=1e-12)
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_files_are_not_overwritten_without_force(run: Run) -> None:
    Path("a.csv").write_text("precious")
    status, out, err = run("fit", "sleepstudy", FORMULA, "--csv", "a.csv")
    assert (status, out) == (2, "")
    assert err == "jaxmixed: 'a.csv' exists; add --force to overwrite it\n"
    assert Path("a.csv").read_text() == "precious"
    assert run("fit", "sleepstudy", FORMULA, "--csv", "a.csv", "--force")[0] == 0
    assert Path("a.csv").read_text().startswith("effect,group,term")


def test_the_data_are_never_overwritten(run: Run) -> None:
    data_file()
    status, _, err = run("fit", "data.csv", FORMULA, "--csv", "./data.csv", "--force")
    assert status == 2
    assert "would overwrite the data" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--csv", "no/such/a.csv"), "there is no directory 'no/such'"),
        (("--csv", "."), "is a directory"),
        (("--csv", "a.csv", "--json", "./a.csv"), "two results cannot be written to the same file"),
        (("--plot", "a.txt"), "writes .png, .pdf, .svg files, not '.txt'"),
        (("--level", "95"), "'95' is not a number between 0 and 1"),
        (("--covariance", "diagonal"), "'diagonal' is not one of unstructured"),
        (("--covariance", "identity", "--covariance", "Subject=identity"), "once for each group"),
        (("--method", "reml2"), "invalid choice: 'reml2'"),
    ],
)
def test_wrong_usage_exits_with_two(run: Run, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = run("fit", "sleepstudy", FORMULA, *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_a_missing_plot_library_is_found_out_before_the_fit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    status, out, err = run("fit", "sleepstudy", FORMULA, "--plot", "a.png")
    assert (status, out) == (2, "")
    assert "pip install 'jaxmixed[plot]'" in err


@pytest.mark.parametrize(
    ("data", "formula", "message"),
    [
        ("sleepstudy", "Reactin ~ Days + (1 | Subject)", "no column 'Reactin' (did you mean 'Reaction'?)"),
        ("sleepstudy", "Reaction ~ Days + (1 | Subject", "never closed"),
        ("sleepstdy", FORMULA, "did you mean sleepstudy?"),
        ("nowhere.csv", FORMULA, "there is no file 'nowhere.csv'"),
        (".", FORMULA, "is a directory"),
        ("empty.csv", FORMULA, "'empty.csv' is empty"),
        ("header.csv", FORMULA, "there are no data"),
        ("inf.csv", "y ~ x", "'y' is infinite"),
        ("twice.csv", "y ~ x", "two columns named 'x'"),
        ("latin.csv", "y ~ x", "not UTF-8 text"),
        ("binary.csv", "y ~ x", "binary data"),
        ("broken.parquet", "y ~ x", "not a valid .parquet file"),
        ("broken.dta", "y ~ x", "not a valid .dta file"),
        ("broken.xlsx", "y ~ x", "not a valid .xlsx file"),
        ("broken.csv.gz", "y ~ x", "cannot be read"),
        ("ragged.csv", "y ~ x", "not a valid .csv file"),
        ("surplus.csv", "y ~ x", "more fields than its first line has names"),
        ("data.sav", "y ~ x", "no known ending; readable are .arrow, .csv"),
        ("bad\0name", "y ~ x", "there is no file"),
        ("n" * 5000 + ".csv", "y ~ x", "not a usable file name"),
    ],
)
def test_an_error_of_data_or_model_is_one_line_and_exits_with_one(
    run: Run, data: str, formula: str, message: str
) -> None:
    contents: dict[str, bytes] = {
        "empty.csv": b"",
        "header.csv": b"y,x\n",
        "inf.csv": b"y,x\n1,2\ninf,3\n2,2\n4,1\n",
        "twice.csv": b"y,x,x\n1,2,3\n",
        "latin.csv": "y,x\n1,é\n".encode("latin-1"),
        "binary.csv": b"PK\x03\x04\0\0\0",
        "broken.parquet": b"PAR1 no",
        "broken.dta": b"<stata_dta>",
        "broken.xlsx": b"no",
        "broken.csv.gz": gzip.compress(b"y,x\n1,2\n" * 1000)[:30],
        "ragged.csv": b"y,x\n1,2\n1,2,3,4\n",
        "surplus.csv": b"y,x\n1,2,\n3,4,\n",
        "data.sav": b"$FL2",
    }
    if data in contents:
        Path(data).write_bytes(contents[data])
    status, out, err = run("fit", data, formula)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("jaxmixed: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("residuals", "message"),
    [
        ("ar1(Dayz | Subject)", "no column 'Dayz' (did you mean 'Days'?)"),
        ("arl(Days | Subject)", "'arl' is no residual structure; did you mean 'ar'?"),
        ("us(Days | Subject", "never closed"),
    ],
)
def test_a_structure_of_the_residuals_reaches_the_model(run: Run, residuals: str, message: str) -> None:
    status, out, err = run("fit", "sleepstudy", "Reaction ~ Days", "--residuals", residuals)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_debug_option_shows_the_error_itself(run: Run) -> None:
    with pytest.raises(jm.DataError, match="Reactin"):
        run("fit", "sleepstudy", "Reactin ~ Days", "--debug")


def test_control_characters_in_names_never_reach_the_terminal(run: Run) -> None:
    Path("a.csv").write_text("y,x,\x1b[31mg\n1,2,3\n")
    status, _, err = run("fit", "a.csv", "y ~ nothing")
    assert status == 1
    assert "\x1b" not in err


def test_an_internal_error_is_admitted_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr("jaxmixed.model.mixed", fail)
    status, _, err = run("fit", "sleepstudy", FORMULA)
    assert status == 1
    assert err == (
        "jaxmixed: internal error (IndexError): list index; run again with --debug and report it\n"
    )


# Progress and interruption


def test_the_progress_line_appears_in_a_terminal_after_a_while_and_is_wiped() -> None:
    terminal, done = io.StringIO(), threading.Event()
    threading.Timer(0.9, done.set).start()
    cli._wait(done, terminal)
    text = terminal.getvalue()
    assert "fitting" in text
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text


def test_a_short_fit_shows_no_progress() -> None:
    terminal, done = io.StringIO(), threading.Event()
    done.set()
    cli._wait(done, terminal)
    assert terminal.getvalue() == ""


def test_an_error_in_the_background_is_raised_in_front() -> None:
    def fail() -> None:
        raise jm.DataError("wrong")

    with pytest.raises(jm.DataError, match="wrong"):
        cli._in_background(fail, quiet=True)
    assert cli._in_background(lambda: 3, quiet=True) == 3


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_stops_a_running_fit_with_one_line_and_130() -> None:
    code = (
        "import sys, time, jaxmixed.model\n"
        "from jaxmixed import cli\n"
        "def slow(*a, **k):\n"
        "    print('fitting', flush=True)\n"
        "    time.sleep(60)\n"
        "jaxmixed.model.mixed = slow\n"
        "sys.exit(cli.main(['fit', 'sleepstudy', 'Reaction ~ Days']))\n"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "fitting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "jaxmixed: interrupted\n")


def test_an_interruption_before_the_fit_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmixed.files.load_data", stop)
    assert run("fit", "sleepstudy", FORMULA) == (130, "", "jaxmixed: interrupted\n")


# Other commands


# Do-files


def script(text: str, name: str = "a.do") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


MODEL = "mixed Reaction Days || Subject: Days, covariance(unstructured) reml"


def test_a_do_file_prints_its_commands_and_their_tables(run: Run) -> None:
    name = script(f"* two commands\n{MODEL} ///\n  nolog\nestat icc\n")
    status, out, err = run("stata", name, "--data", "sleepstudy")
    assert (status, err) == (0, "")
    assert out.startswith(f". {MODEL} nolog\n")
    assert out == jm.stata(Path(name).read_text(), jm.datasets.load("sleepstudy"), echo=True).text
    assert "\n. estat icc\n" in out


def test_a_script_may_bring_its_own_data(run: Run) -> None:
    data_file("study.csv")
    name = script(f"use study.csv\r\nkeep if Days < 9\r\nquietly {MODEL}\r\ndisplay e(N)\r\n")
    status, out, _ = run("stata", name)
    assert status == 0
    assert out.rstrip().endswith("162")
    script(f"use study.csv, clear\n{MODEL}\n")
    assert run("stata", name, "--data", "pig")[0] == 0


def test_a_script_comes_from_the_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfdisplay 1 + 1\n")))
    assert run("stata", "-") == (0, ". display 1 + 1\n2\n\n", "")


@pytest.mark.parametrize(
    ("text", "place", "message", "pointer"),
    [
        (f"{MODEL}\n  mxed Reaction\n", "line 2, column 3", "did you mean 'mixed'", "    mxed Reaction"),
        (f"quietly {MODEL}\nestat iccc\n", "line 2, column 7", "icc", "  estat iccc"),
        (f"{MODEL}\nsummarize Dys\n", "line 2, column 11", "did you mean 'Days'", "  summarize Dys"),
        (f"{MODEL} robuust\n", "line 1, column 69", "did you mean 'robust'", f"  {MODEL} robuust"),
        ("foreach v of varlist Days {\n", "line 1, column 1", "loops", "  foreach"),
        ("generate x = Days / Reaktion\n", "line 1, column 21", "'Reaction'", "  generate x"),
    ],
)  # fmt: skip
def test_a_script_that_fails_says_where_and_prints_nothing_else(
    run: Run, text: str, place: str, message: str, pointer: str
) -> None:
    status, out, err = run("stata", script(text), "--data", "sleepstudy", "--plot", "a.png")
    assert (status, out) == (1, "")
    first, shown, arrow = err.splitlines()
    assert first.startswith(f"jaxmixed: {place}: ")
    assert message in first
    assert shown.startswith(pointer)
    assert set(arrow) == {" ", "^"}
    assert arrow.index("^") == int(place.rsplit(" ", 1)[1]) + 1
    assert not Path("a.png").exists()


def test_figures_of_a_script_are_saved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    draw = "serrbar Reaction Days row in 1/10\n"
    name = script(f"generate row = _n\n{draw}{draw}")
    status, _, err = run("stata", name, "--data", "sleepstudy", "--plot", "a.png")
    assert (status, err) == (0, "")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert Path("a-2.png").read_bytes().startswith(b"\x89PNG")
    Path("a.png").unlink()
    status, out, err = run("stata", name, "--data", "sleepstudy", "--plot", "a.png")
    assert (status, out) == (2, "")
    assert err == "jaxmixed: 'a-2.png' exists; add --force to overwrite it\n"
    assert not Path("a.png").exists()
    status, out, err = run("stata", name, "--data", "sleepstudy")
    assert (status, err) == (0, "jaxmixed: note: add --plot FILE to save what the script draws\n")
    script("display 1\n")
    status, out, err = run("stata", name, "--plot", "b.png")
    assert (status, err) == (0, "jaxmixed: note: the script draws no figure\n")


def test_scripts_that_cannot_be_read_and_files_in_the_way(run: Run) -> None:
    status, out, err = run("stata", "no.do")
    assert (status, out) == (1, "")
    assert err == "jaxmixed: the script 'no.do' cannot be read: No such file or directory\n"
    Path("l.do").write_bytes(b'display 1\ndisplay "\xe9"\n')
    status, out, err = run("stata", "l.do")
    assert (status, out) == (1, "")
    assert "line 2 of the script is not UTF-8" in err
    status, _, err = run("stata", script("display 1\n"), "--data", "sleepstudies")
    assert status == 1
    assert "did you mean sleepstudy" in err
    status, _, err = run("stata", script("display 1\n", "a.svg"), "--plot", "a.svg", "--force")
    assert status == 2
    assert "would overwrite the script" in err
    assert run("stata")[0] == 2
    assert "examples:" in run("stata", "--help")[1]


def test_data_sets_are_listed_described_and_printed(run: Run) -> None:
    status, out, _ = run("datasets")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(jm.datasets.names())
    _, out, _ = run("datasets", "pig", "--describe")
    assert out == f"{jm.datasets.describe('pig')}\n"
    _, out, _ = run("datasets", "--describe")
    assert out.count("Example:") in (0, len(jm.datasets.names()))
    _, out, _ = run("datasets", "pig")
    assert pd.read_csv(io.StringIO(out)).shape == jm.datasets.load("pig").shape
    status, _, err = run("datasets", "pigs")
    assert status == 1
    assert "'pig'" in err


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"jaxmixed {jm.__version__}\n", "")
    status, out, _ = run("fit", "--help")
    assert status == 0
    assert "sleepstudy" in out
    status, out, _ = run()
    assert status == 2
    assert "usage: jaxmixed" in out


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "jaxmixed", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"jaxmixed {jm.__version__}\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = [sys.executable, "-m", "jaxmixed", "datasets", "hsb82"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


# Files


def tables() -> pd.DataFrame:
    return pd.DataFrame({"y": [1.5, 2.25, -3.0], "x": [1, 2, 3], "g": ["a", "b", "ü"]})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", lambda d, p: d.to_csv(p, index=False)),
        ("a.CSV", lambda d, p: d.to_csv(p, index=False, encoding="utf-8-sig")),
        ("a.txt", lambda d, p: d.to_csv(p, index=False, sep="\t", encoding="utf-16")),
        ("a.tsv", lambda d, p: d.to_csv(p, index=False, sep="\t")),
        ("b.csv", lambda d, p: d.to_csv(p, index=False, sep=";", decimal=",")),
        ("c.csv", lambda d, p: d.to_csv(p, index=False, sep=";")),
        ("a.csv.gz", lambda d, p: d.to_csv(p, index=False)),
        ("a.parquet", lambda d, p: d.to_parquet(p)),
        ("a.feather", lambda d, p: d.to_feather(p)),
        ("a.dta", lambda d, p: d.to_stata(p, write_index=False, version=118)),
    ],
)
def test_files_of_every_kind_are_read_alike(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    path = tmp_path / name
    write(tables(), path)
    found = load_data(str(path))
    assert found.columns.tolist() == ["y", "x", "g"]
    np.testing.assert_array_equal(found["y"], tables()["y"])
    assert found["g"].tolist() == ["a", "b", "ü"]


def test_excel_files_are_read(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    tables().to_excel(tmp_path / "a.xlsx", index=False)
    np.testing.assert_array_equal(load_data(str(tmp_path / "a.xlsx"))["y"], tables()["y"])


def test_a_missing_reader_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")

    def missing(path: Path) -> pd.DataFrame:
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setitem(files._READERS, ".parquet", missing)
    with pytest.raises(jm.DataError, match=r"pip install 'jaxmixed\[io\]'"):
        load_data(str(tmp_path / "a.parquet"))


def test_commas_within_quotes_do_not_mislead_the_search_for_the_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('y;g\n1;"a,b,c"\n2;"d,e,f"\n')
    assert load_data(str(path))["g"].tolist() == ["a,b,c", "d,e,f"]


def test_one_column_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("y\n1\n2\n")
    assert load_data(str(tmp_path / "a.csv"))["y"].tolist() == [1, 2]


def test_row_names_written_by_r_are_not_taken_for_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"y","x"\n"1",5,6\n"2",7,8\n')
    found = load_data(str(tmp_path / "a.csv"))
    assert found["y"].tolist() == [5, 7]
    assert found["x"].tolist() == [6, 8]


def test_blanks_around_names_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(" y , x \n1, 2\n3, 4\n")
    assert load_data(str(tmp_path / "a.csv")).columns.tolist() == ["y", "x"]


def test_a_file_with_the_name_of_a_data_set_needs_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pig").write_text("y\n1\n")
    assert len(load_data("pig")) == len(jm.datasets.load("pig"))
    with pytest.raises(jm.DataError, match="no known ending"):
        load_data("./pig")
