"""Residual structures as users write them: classes, and their texts."""

from __future__ import annotations

import pickle

import pytest

from jaxmixed.errors import DesignError, FormulaError
from jaxmixed.residual_text import as_structure, parse_structure
from jaxmixed.residuals import (
    AR,
    ARMA,
    BY_TIME,
    MA,
    AnteDependence,
    Banded,
    Exchangeable,
    Exp,
    Exponential,
    Independent,
    Power,
    Toeplitz,
    Unstructured,
    structure,
)

IN_WEEK = {"time": "week", "group": "id"}

TEXTS = {
    "us(visit | id)": Unstructured(time="visit", group="id"),
    "un(visit|id)": Unstructured(time="visit", group="id"),
    "unstructured( visit | id )": Unstructured(time="visit", group="id"),
    "US(visit | id)": Unstructured(time="visit", group="id"),
    "us(visit)": Unstructured(time="visit"),
    "us(visit | arm/id)": Unstructured(time="visit", group="id", by="arm"),
    "us(visit | site:arm/site:id)": Unstructured(time="visit", group=("site", "id"), by=("site", "arm")),
    "us(`study visit` | `patient id`)": Unstructured(time="study visit", group="patient id"),
    "cs(id)": Exchangeable(group="id"),
    "cs(visit | id)": Exchangeable(time="visit", group="id"),
    "exchangeable(id, by=sex)": Exchangeable(group="id", by="sex"),
    "csh(visit | id)": Exchangeable(time="visit", group="id", variance_by="visit"),
    "ar1(week | id)": AR(1, **IN_WEEK),
    "ar1h(week | id)": AR(1, **IN_WEEK, variance_by="week"),
    "ar(3, week | id)": AR(3, **IN_WEEK),
    "arh(2, week | id)": AR(2, **IN_WEEK, variance_by="week"),
    "ar1(week | id, variance_by=sex)": AR(1, **IN_WEEK, variance_by="sex"),
    "ar1h(week | id, variance_by=sex)": AR(1, **IN_WEEK, variance_by="sex"),
    "ma1(week | id)": MA(1, **IN_WEEK),
    "ma(2, week | id)": MA(2, **IN_WEEK),
    "arma(1, 2, week | id)": ARMA(1, 2, **IN_WEEK),
    "armah(1, 1, week | id)": ARMA(1, 1, **IN_WEEK, variance_by="week"),
    "toep(week | id)": Toeplitz(**IN_WEEK),
    "toeph(2, week | id)": Toeplitz(2, **IN_WEEK, variance_by="week"),
    "toeplitz(2, week | id)": Toeplitz(2, **IN_WEEK),
    "banded(2, week | id)": Banded(2, **IN_WEEK),
    "ad(week | id)": AnteDependence(**IN_WEEK, variance_by=None),
    "adh(week | id)": AnteDependence(**IN_WEEK, variance_by="week"),
    "antedependence(week | id)": AnteDependence(**IN_WEEK),
    "exp(week | id)": Exponential(**IN_WEEK),
    "sp_exp(week | id)": Exponential(**IN_WEEK),
    "ou(week | id, nugget)": Exponential(**IN_WEEK, nugget=True),
    "exponential(week | id, nugget, by=arm)": Exponential(**IN_WEEK, nugget=True, by="arm"),
    "iid": Independent(),
    "independent(by=sex)": Independent(by="sex"),
    "diag(visit)": Independent(variance_by="visit"),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.items(), ids=TEXTS)
def test_a_text_is_read_as_its_structure(text, expected):
    assert parse_structure(text) == expected


@pytest.mark.parametrize(
    ("text", "says", "at"),
    [
        ("uns(visit | id)", "did you mean 'us'", 1),
        ("xyz", "there are iid, independent", 1),
        ("", "empty text", None),
        ("ar(week | id)", "write ar(2, time | group)", 1),
        ("arma(1, week | id)", "needs 2 numbers", 1),
        ("ar1(2, week | id)", "needs no number", 1),
        ("ar(0, week | id)", "positive whole number", 4),
        ("ar(1.5, week | id)", "positive whole number", 4),
        ("us(visit || id)", "single '|'", 4),
        ("us(visit | a/b/c)", "name of a column", 12),
        ("us(a + b | id)", "name of a column", 4),
        ("us(a:b | id)", "the time is one column", 4),
        ("us(visit | arm/id, by=arm)", "given twice", 12),
        ("us(visit | id, group=id)", "by= and variance_by=", 16),
        ("us(visit | id, 3)", "numbers come first", 16),
        ("us(visit | id, nugget)", "has no nugget", 16),
        ("us(visit | id", "never closed", 3),
        ("us(visit | id) + ar1(week | id)", "a name with columns", 1),
        ("csh", "a variance for each time", 1),
        ("diag(visit | id)", "have no groups", 1),
        ("us(visit ! id)", "'!'", 10),
    ],
)
def test_a_text_that_cannot_be_read_is_shown_with_the_place(text, says, at):
    with pytest.raises(FormulaError) as caught:
        parse_structure(text)
    message = str(caught.value)
    assert says in message
    if at is not None:
        assert f"(character {at}," in message
        assert text in message


def test_a_structure_and_none_pass_as_they_are():
    own = AR(2, time="week")
    assert as_structure(own) is own
    assert as_structure(None) is None
    assert as_structure("ar(2, week)") == own


@pytest.mark.parametrize(
    ("given", "says"),
    [(3, "residuals=3"), (AR, "jm.residuals.AR(time=..., group=...)"), ([], "residuals=[]")],
)
def test_anything_else_is_refused(given, says):
    with pytest.raises(FormulaError) as caught:
        as_structure(given)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AR(0), "order=0 of AR"),
        (lambda: MA(1.0), "order=1.0 of MA"),
        (lambda: ARMA(1, True), "ma=True of ARMA"),
        (lambda: AR("week"), "columns are given by keyword"),
        (lambda: Toeplitz(-1), "order=-1 of Toeplitz"),
        (lambda: AnteDependence(2), "AnteDependence(2) is not available"),
        (lambda: AR(time=3), "time= of AR(1) is 3"),
        (lambda: AR(time=("a", "b")), "time= of AR(1)"),
        (lambda: AR(group=()), "or a tuple of names"),
        (lambda: AR(by=["sex"]), "by= of AR(1)"),
        (lambda: AR(variance_by=""), "variance_by= of AR(1)"),
        (lambda: AR(variance="x"), "jm.residuals.Power('column')"),
        (lambda: Exponential(nugget=1), "nugget=1"),
        (lambda: Power(["x"]), "the covariate of Power"),
        (lambda: Exp(("a", "b")), "the covariate of Exp"),
        (lambda: structure(3, {}), "cannot be called"),
        (lambda: structure(abs, {1: None}), "mapping from their names"),
    ],
)
def test_what_makes_no_structure_is_refused_when_it_is_written(make, says):
    with pytest.raises(DesignError) as caught:
        make()
    assert says in str(caught.value)


def test_variances_differ_by_label_by_default_only_where_the_field_has_it_so():
    for family in (Unstructured, Banded, AnteDependence):
        assert family(time="visit").variance_by is BY_TIME
        assert family(time="visit", variance_by=None).variance_by is None
    for family in (Independent, Exchangeable, AR, MA, ARMA, Exponential, Toeplitz):
        assert family().variance_by is None


def test_structures_are_values():
    one, other = AR(2, time="week", group=("a", "b")), AR(2, time="week", group=("a", "b"))
    assert one == other
    assert hash(one) == hash(other)
    assert one != AR(1, time="week", group=("a", "b"))
    assert pickle.loads(pickle.dumps(one)) == one
    assert pickle.loads(pickle.dumps(Unstructured(time="visit"))).variance_by is BY_TIME


def test_a_structure_of_ones_own_has_the_name_of_its_function():
    def damped(params, times):
        return times * params["a"]

    assert structure(damped, {"a": None}).text == "damped"
    assert structure(damped, {"a": None}, name="own").text == "own"
    assert structure(damped, {"a": None}) == structure(damped, {"a": None})
