"""Between Stata's notation and formulas: the same model in both, refusals that say what to write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.frame import ModelFrame
from jaxmixed.model import frame_of
from jaxmixed.sampling import sampling_frame, weights_request
from jaxmixed.stata_writing import stata_command
from tests.support.fits import sleepstudy

R = jm.residuals


def frame(formula: str, data: Any, method: str = "reml", **arguments: Any) -> ModelFrame:
    """What `mixed` would fit."""
    names = ("sampling_weights", "frequency_weights", "weight_scaling")
    weights = [arguments.pop(name, None) for name in names]
    request = weights_request(*weights, method, {})
    also = () if request is None else tuple(request.columns.values())
    given = {"covariance": None, "contrasts": None, "functions": None, "weights": None, "offset": None}
    made, _ = frame_of(formula, data, missing="drop", also=also, **{**given, **arguments})
    return replace(made, sampling=sampling_frame(request, made))


def partition(codes: np.ndarray) -> list[int]:
    """Groups numbered by their first rows, whatever they are called."""
    return pd.factorize(codes)[0].tolist()


def assert_same_model(one: ModelFrame, other: ModelFrame) -> None:
    """Same columns in whatever order, same groups, structures, residuals and weights."""
    assert np.array_equal(one.y, other.y)
    assert np.array_equal(np.unique(one.X, axis=1), np.unique(other.X, axis=1))

    def parts(frame: ModelFrame) -> list[Any]:
        found = []
        for group in frame.groups:
            structure = "one" if len(group.names) == 1 else group.structure
            found.append((partition(group.codes), structure, np.unique(group.Z, axis=1).tolist()))
        return sorted(found, key=str)

    assert parts(one) == parts(other)
    assert (one.residual is None) == (other.residual is None)
    if one.residual is not None and other.residual is not None:
        assert one.residual.labels.text.split(" in ")[0] == other.residual.labels.text.split(" in ")[0]
        mine, its = one.residual.design, other.residual.design
        assert np.array_equal(mine.codes, its.codes)
        assert np.array_equal(mine.times, its.times)
        assert np.array_equal(mine.levels, its.levels)
        assert np.array_equal(mine.stratum, its.stratum)
    assert (one.sampling is None) == (other.sampling is None)
    if one.sampling is not None and other.sampling is not None:
        assert np.array_equal(one.sampling.rows, other.sampling.rows)
        assert sorted(map(str, one.sampling.groups.values())) == sorted(
            map(str, other.sampling.groups.values())
        )


def schools() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    n = 48
    return pd.DataFrame(
        {
            "y": rng.standard_normal(n),
            "x": rng.standard_normal(n),
            "z": rng.standard_normal(n),
            "arm": np.tile([1, 2, 3], 16),
            "sex": np.tile(["f", "m"], 24),
            "week": np.tile([0, 1, 2, 3], 12),
            "school": np.repeat([1, 2, 3, 4], 12),
            "room": np.tile(np.repeat([1, 2, 3], 4), 4),
            "pupil": np.repeat(np.arange(12), 4),
            "item": np.tile([1, 2, 3, 4], 12),
            "w1": np.tile([1.0, 2.0], 24),
            "w2": np.repeat([1.0, 3.0], 24),
        }
    )


TRANSLATIONS = [
    ("y ~ x + (1 | school)", {}, "mixed y x || school:, reml"),
    ("y ~ x + (x | school)", {"method": "ml"}, "mixed y x || school: x, covariance(unstructured)"),
    ("y ~ x + (x + z || school)", {"method": "ml"}, "mixed y x || school: x z"),
    ("y ~ 0 + x + (0 + x | school)", {"method": "ml"}, "mixed y x, noconstant || school: x, noconstant"),
    ("y ~ x + homdiag(x | school)", {"method": "ml"}, "mixed y x || school: x, covariance(identity)"),
    ("y ~ x + cs(x | school)", {"method": "ml"}, "mixed y x || school: x, covariance(exchangeable)"),
    ("y ~ x + (1 | school/room)", {"method": "ml"}, "mixed y x || school: || room:"),
    ("y ~ x + (1 | school) + (1 | pupil)", {"method": "ml"}, "mixed y x || school: || pupil:"),
    ("y ~ x + (1 | item) + (x | school)", {"method": "ml"},
     "mixed y x || _all: R.item || school: x, covariance(unstructured)"),
    ("y ~ x + (1 | room) + (1 | school) + (1 | school:room)", {"method": "ml"},
     "mixed y x || _all: R.room || school: || room:"),
    ("y ~ x + (1 | school) + (0 + x | school)", {"method": "ml"},
     "mixed y x || school: || school: x, noconstant"),
    ("y ~ x + z + x:z + I(x^2)", {}, "mixed y c.x#c.x c.x##c.z, reml"),
    ("y ~ factor(arm)*x", {"method": "ml"}, "mixed y i.arm##c.x"),
    ("y ~ factor(arm) + factor(arm):x", {"method": "ml"}, "mixed y i.arm i.arm#c.x"),
    ("y ~ C(arm, ref=2)*factor(week)", {"method": "ml"}, "mixed y ib2.arm##i.week"),
    ("y ~ 0 + factor(arm) + factor(week)", {"method": "ml"}, "mixed y ibn.arm i.week, noconstant"),
    ("y ~ sex + (sex | school)", {"method": "ml"},
     "mixed y i.sex || school: i.sex, covariance(unstructured)"),
    ("y ~ x", {"method": "ml", "residuals": "ar1(week | pupil)"},
     "mixed y x || pupil:, noconstant residuals(ar 1, t(week))"),
    ("y ~ x + (1 | school)", {"method": "ml", "residuals": R.MA(2, time="week", group="pupil")},
     "mixed y x || school: || pupil:, noconstant residuals(ma 2, t(week))"),
    ("y ~ x", {"method": "ml", "residuals": "us(week | pupil)"},
     "mixed y x || pupil:, noconstant residuals(unstructured, t(week))"),
    ("y ~ x", {"method": "ml", "residuals": R.Banded(1, time="week", group=("school", "room"))}, None),
    ("y ~ x + (1 | pupil)", {"method": "ml", "residuals": R.Toeplitz(time="week", by="school")},
     "mixed y x || pupil:, residuals(toeplitz, t(week) by(school))"),
    ("y ~ x + (1 | school)", {"method": "ml", "residuals": R.Independent(variance_by="sex")},
     "mixed y x || school:, residuals(independent, by(sex))"),
    ("y ~ x", {"method": "ml", "residuals": "cs(pupil)"},
     "mixed y x || pupil:, noconstant residuals(exchangeable)"),
    ("y ~ x", {"method": "ml", "residuals": "exp(week | pupil)"},
     "mixed y x || pupil:, noconstant residuals(exponential, t(week))"),
    ("y ~ x + (1 | school)",
     {"method": "ml", "sampling_weights": {"obs": "w1", "school": "w2"}, "weight_scaling": "size"},
     "mixed y x [pweight=w1] || school:, pweight(w2) pwscale(size)"),
    ("y ~ x + (1 | school)", {"method": "ml", "frequency_weights": {"school": "w2"}},
     "mixed y x || school:, fweight(w2)"),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "arguments", "command"), TRANSLATIONS)
def test_a_model_has_its_command_and_the_command_is_the_model(
    formula: str, arguments: dict[str, Any], command: str | None
) -> None:
    data = schools()
    made = frame(formula, data, **arguments)
    if command is None:
        with pytest.raises(jm.StataError, match="more than one variable"):
            stata_command(made, "ml")
        return
    assert stata_command(made, arguments.get("method", "reml")) == command
    back, own = jm.from_stata(command)
    assert own["method"] == arguments.get("method", "reml")
    assert_same_model(made, frame(back, data, **own))


@pytest.mark.parametrize(
    ("command", "formula"),
    [
        ("mixed y x || school: x, cov(un) reml", "y ~ 1 + x + (1 + x | school)"),
        ("mixed y x || school: x, cov(ex) nolog stddev", "y ~ 1 + x + cs(1 + x | school)"),
        ("mixed y c.x##c.x || _all: R.item || pupil:", "y ~ 1 + x + I(x^2) + (1 | item) + (1 | pupil)"),
        ("mixed y || school: R.item", "y ~ 1 + (1 | school:item)"),
        ("mixed y i.arm#c.x", "y ~ 1 + factor(arm):x"),
        ("mixed y x z", "y ~ 1 + x + z"),
        ("mixed y i.(arm week)", "y ~ 1 + factor(arm) + factor(week)"),
        ("quietly mixed y ///\n x // comment\n", "y ~ 1 + x"),
    ],
)
def test_commands_become_formulas(command: str, formula: str) -> None:
    assert jm.from_stata(command)[0] == formula


@pytest.mark.parametrize(
    ("command", "column", "message"),
    [
        ("mixd y x", 1, "did you mean 'mixed'"),
        ("regress y x", 1, "'regress' is not a supported command"),
        ("mixed", 1, "mixed needs a response"),
        ("mixed y x if z > 1", 14, "rows are chosen before the fit"),
        ("mixed y x in 1/5", 14, "rows are chosen before the fit"),
        ("mixed y y x || school:", 1, "the response 'y' also stands on the right"),
        ("mixed y x*", 10, "write the names in full"),
        ("mixed y x1-x3", 11, "write the names in full"),
        ("mixed y _all", 9, "write the names in full"),
        ("mixed y 2.arm", 9, "generate their indicators"),
        ("mixed y ib(last).arm", 9, "write its value"),
        ("mixed y i.arm#i.week", 9, "join them by ##"),
        ("mixed y ibn.arm", 9, "one too many"),
        ("mixed y i.arm, noconstant", 9, "say that all levels are meant: ibn.arm"),
        ("mixed y x || _all: x", 14, "the same in all rows"),
        ("mixed y x || g: x, vce(robust)", 20, "fit.robust"),
        ("mixed y x || g: , reml dfmethod(kroger)", 24, "fit.summary(ddf="),
        ("mixed y x || g: , level(90)", 19, "fit.summary(level="),
        ("mixed y x [pw=1/w]", 15, "a weight is one variable"),
        ("mixed y x [pw=w], reml", 1, "need maximum likelihood"),
        ("mixed y x [pw=w] || g:, fweight(w)", 25, "of one kind"),
        ("mixed y x || g:, residuals(ar 1)", 18, "needs t(variable)"),
        ("mixed y x || g:, covariance(diag)", 29, "no covariance structure"),
    ],
)  # fmt: skip
def test_what_needs_data_or_has_no_counterpart_is_refused_where_it_stands(
    command: str, column: int, message: str
) -> None:
    with pytest.raises(jm.StataError) as caught:
        jm.from_stata(command)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (1, column)


def test_one_command_is_translated_at_a_time() -> None:
    with pytest.raises(jm.StataError, match="not 2 commands"):
        jm.from_stata("mixed y x\nmixed y z")
    with pytest.raises(jm.StataError, match="is list, not text"):
        jm.from_stata(["mixed y x"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("formula", "arguments", "message"),
    [
        ("y ~ log(w2)", {}, r"the term log\(w2\)"),
        ("I(y*2) ~ x", {}, r"the response I\(y \* 2\)"),
        ("y ~ x + ar1(0 + week | pupil)", {}, "the structure"),
        ("y ~ x + (1 | school:room)", {}, "adds more than one variable at once"),
        ("y ~ x + (x | school) + (x | item)", {}, "the crossed groupings"),
        ("y ~ x", {"weights": "w1"}, "precision weights"),
        ("y ~ x", {"offset": "w1"}, "an offset"),
        ("y ~ C(arm, sum)", {}, r"C\(arm, treatment\)"),
        ("y ~ factor(arm):factor(week)", {}, "without its main effects"),
        ("y ~ 0 + factor(arm)*x", {}, "with an intercept"),
        ("y ~ factor(w1) + factor(half)", {}, "number them from 1"),
        ("y ~ `a b`", {}, "rename the column"),
        ("y ~ x", {"residuals": R.AR(time="week", group="pupil", variance_by="week")}, "variances by levels"),
        (
            "y ~ x",
            {"residuals": R.Unstructured(time="week", group="pupil", variance_by=None)},
            "one variance",
        ),
        ("y ~ x", {"residuals": R.ARMA(time="week", group="pupil")}, "ARMA"),
        ("y ~ x", {"residuals": R.Exponential(time="week", group="pupil", nugget=True)}, "nugget"),
        ("y ~ x", {"residuals": R.Independent(variance_by="sex")}, "no levels"),
        ("y ~ x + (1 | pupil)", {"residuals": R.Independent(variance=R.Power("w1"))}, "a variance function"),
        ("y ~ x + (1 | pupil)", {"residuals": R.Exchangeable(group="school")}, "of the innermost level"),
    ],
)
def test_parts_that_stata_does_not_have_are_named(
    formula: str, arguments: dict[str, Any], message: str
) -> None:
    data = schools().assign(half=lambda d: d["arm"] / 2, **{"a b": 1.5})
    with pytest.raises(jm.StataError, match=message):
        stata_command(frame(formula, data, **arguments), "reml")


def test_levels_that_are_texts_are_numbered_as_categories() -> None:
    data = schools()
    data["site"] = pd.Categorical(np.tile(["b", "c", "a"], 16), ["c", "d", "b", "a"])
    assert stata_command(frame('y ~ C(site, ref="b")', data), "ml") == "mixed y ib3.site"
    assert stata_command(frame('y ~ C(sex, ref="m")', data), "ml") == "mixed y ib2.sex"
    data["site"] = data["site"].cat.as_ordered()
    with pytest.raises(jm.StataError, match="poly contrasts"):
        stata_command(frame("y ~ site", data), "ml")


def test_a_known_relationship_is_refused() -> None:
    known = {"school": jm.known(np.eye(4) + 0.5, [1, 2, 3, 4])}
    with pytest.raises(jm.StataError, match="known relationship"):
        stata_command(frame("y ~ x + (1 | school)", schools(), covariance=known), "reml")


def test_a_fit_comes_back_through_stata() -> None:
    fit = sleepstudy()
    command = fit.to_stata()
    assert command == "mixed Reaction Days || Subject: Days, covariance(unstructured) reml"
    output = jm.stata(command, jm.datasets.load("sleepstudy"))
    assert output.fit.llf == pytest.approx(fit.llf, abs=1e-9)
    assert output.fit.to_stata() == command


def test_a_fit_of_stata_keeps_its_columns_names() -> None:
    output = jm.stata("mixed y i.arm##c.x || school:", schools())
    command = output.fit.to_stata()
    assert command == "mixed y 2.arm 3.arm x 2.arm#c.x 3.arm#c.x || school:"
    assert jm.stata(command, schools()).fit.llf == output.fit.llf
