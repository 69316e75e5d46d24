"""Stata's margins, marginsplot, contrast and pwcompare: means of predictions, derivatives, differences."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jaxmixed import datasets
from jaxmixed.errors import StataError
from jaxmixed.stata_commands import COMMANDS
from jaxmixed.stata_session import Session

ROUNDING = 1e-9


@pytest.fixture(scope="module")
def session() -> Session:
    data = datasets.load("exam").iloc[:1500]
    frame = data[["school"]].assign(y=10 * data["normexam"], x=10 * data["standLRT"])
    frame["g"], frame["h"] = np.arange(len(frame)) % 3, np.arange(len(frame)) // 3 % 2
    found = Session(COMMANDS, frame)
    found.run("quietly mixed y c.x##i.g i.h || school:")
    return found


def rows_of(text: str) -> np.ndarray:
    """The numbers of a table of coefficients."""
    pattern = re.compile(r"\|((?: +-?[\d.e+-]+){6})$", re.MULTILINE)
    return np.array([[float(part) for part in match.split()] for match in pattern.findall(text)])


def predicted(session: Session, **values: float) -> np.ndarray:
    """Fixed part at changed data, by its definition."""
    assert session.estimates is not None
    b, frame = session.estimates.b, session.frame.assign(**values)
    x, g = frame["x"], frame["g"]
    total = b["_cons"] + b["x"] * x + b["1.h"] * (frame["h"] == 1)
    for level in (1, 2):
        total = total + (g == level) * (b[f"{level}.g"] + b[f"{level}.g#c.x"] * x)
    return total.to_numpy()


def test_margins_of_a_factor_average_over_the_sample(session: Session) -> None:
    found = rows_of(session.run("margins g"))
    expected = [predicted(session, g=float(level)).mean() for level in range(3)]
    assert np.allclose(found[:, 0], expected, rtol=1e-6)


def test_margins_at_values_have_errors_of_the_delta_method(session: Session) -> None:
    text = session.run("margins g, at(x = (-10 0(5)5))")
    found = rows_of(text)
    assert "1._at: x = -10\n2._at: x =   0\n3._at: x =   5\n" in text
    places = [(x, g) for x in (-10.0, 0.0, 5.0) for g in range(3)]
    assert np.allclose(
        found[:, 0], [predicted(session, x=x, g=float(g)).mean() for x, g in places], rtol=1e-6
    )
    fit = session.estimates.fit  # type: ignore[union-attr]
    names = list(session.estimates.more["names"])  # type: ignore[union-attr]
    L = np.zeros(len(names))
    for name, weight in {
        "_cons": 1,
        "x": 5,
        "2.g": 1,
        "2.g#c.x": 5,
        "1.h": session.frame["h"].mean(),
    }.items():
        L[names.index(name)] = weight
    assert found[-1, 1] == pytest.approx(np.sqrt(L @ fit.cov_params().to_numpy() @ L), rel=1e-6)


def test_dydx_is_the_mean_derivative_or_difference(session: Session) -> None:
    text = session.run("margins, dydx(x g)")
    found = rows_of(text)
    step = (predicted(session, x=session.frame["x"] + 1) - predicted(session)).mean()
    changes = [(predicted(session, g=float(g)) - predicted(session, g=0.0)).mean() for g in (1, 2)]
    assert np.allclose(found[:, 0], [step, *changes], rtol=1e-5)
    assert text.startswith("\nAverage marginal effects")
    assert "discrete change from the base level" in text


def test_all_values_fixed_are_adjusted_predictions(session: Session) -> None:
    text = session.run("margins g, at(x=0 h=1)")
    assert text.startswith("\nAdjusted predictions")
    b = session.estimates.b  # type: ignore[union-attr]
    assert rows_of(text)[0, 0] == pytest.approx(b["_cons"] + b["1.h"], rel=1e-6)


def test_regress_has_t_tests(session: Session) -> None:
    other = Session(COMMANDS, session.frame)
    text = other.run("quietly regress y x\nmargins, atmeans")
    assert "std. err.      t    P>|t|" in text
    assert rows_of(text)[0, 0] == pytest.approx(session.frame["y"].mean(), rel=1e-6)


def test_marginsplot_draws_the_margins(session: Session) -> None:
    close = pytest.importorskip("matplotlib.pyplot").close
    text = session.run('quietly margins g, at(x = (0 5))\nmarginsplot, ytitle("score")')
    assert text == "\nVariables that uniquely identify margins: x g\n"
    figure = session.state.figures[-1]
    ax = figure.axes[0]
    assert ax.get_ylabel() == "score"
    assert [line.get_label() for line in ax.containers] == ["g=0", "g=1", "g=2"]
    own = ax.containers[1][0].get_ydata()
    assert np.allclose(own, [predicted(session, x=x, g=1.0).mean() for x in (0.0, 5.0)], rtol=ROUNDING)
    close(figure)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("margins x", "no factor variable"),
        ("margins, at(school = 1)", "not in the fixed part"),
        ("margins, at(g = 7)", "the levels of 'g' are 0, 1, 2"),
        ("margins, at(x = (0/1e9))", "a range has up to"),
        ("margins, at(x = )", "at() takes values"),
        ("margins, dydx(school)", "not in the fixed part"),
        ("margins g, dydx(x)", "no list of factors"),
        ("margins, predict(fitted)", "not a supported option"),
        ("margins, atmeans", "without factor variables"),
    ],
)
def test_what_margins_does_not_do_is_refused(session: Session, command: str, message: str) -> None:
    with pytest.raises(StataError, match=re.escape(message)) as caught:
        session.run(command)
    assert caught.value.line == 1


# contrast and pwcompare -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def factorial(session: Session) -> Session:
    found = Session(COMMANDS, session.frame)
    found.run("quietly regress y x i.g##i.h")
    return found


def test_the_contrast_of_an_interaction_is_the_test_of_its_coefficients(factorial: Session) -> None:
    text = factorial.run("contrast g#h")
    factorial.run("test 1.g#1.h 2.g#1.h")
    line = (
        rf"         g#h \|          2        {float(factorial.r['F']):.2f}     {float(factorial.r['p']):.4f}"
    )
    assert re.search(line, text)
    assert " Denominator |       1493" in text


def test_main_effects_weigh_the_levels_of_other_factors_alike(factorial: Session) -> None:
    text = factorial.run("contrast h")
    factorial.run("test 1.h + (1.g#1.h + 2.g#1.h)/3 = 0")
    assert f"           h |          1{float(factorial.r['F']):12.2f}{float(factorial.r['p']):11.4f}" in text


def test_pairwise_comparisons_are_differences_of_balanced_means(factorial: Session) -> None:
    text = factorial.run("pwcompare g, effects")
    factorial.run("lincom 2.g - 1.g + (2.g#1.h - 1.g#1.h)/2")
    own = [float(factorial.r[name]) for name in ("estimate", "se", "t", "p", "lb", "ub")]
    assert np.allclose(rows_of(text)[2], own, rtol=1e-3, atol=6e-3)
    assert rows_of(text)[2, :2] == pytest.approx(own[:2], rel=1e-6)


def test_bonferroni_multiplies_by_the_number_of_pairs(factorial: Session) -> None:
    plain = rows_of(factorial.run("pwcompare g, effects"))
    adjusted = rows_of(factorial.run("pwcompare g, effects mcompare(bonferroni)"))
    assert np.allclose(adjusted[:, 3], np.minimum(1, 3 * plain[:, 3]), atol=2e-3)
    assert (adjusted[:, 4] < plain[:, 4]).all()


def test_chi_squared_after_mixed(session: Session) -> None:
    text = session.run("contrast h\ntest 1.h")
    assert f"           h |          1{float(session.r['chi2']):12.2f}" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("contrast x", "no factor variable"),
        ("contrast g", "interacts with a covariate"),
        ("contrast r.h", "not supported"),
        ("pwcompare h, mcompare(tukey)", "mcompare() takes"),
        ("pwcompare", "needs factors"),
    ],
)
def test_what_contrasts_do_not_do_is_refused(session: Session, command: str, message: str) -> None:
    with pytest.raises(StataError, match=re.escape(message)):
        session.run(command)
