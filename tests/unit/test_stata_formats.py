"""Numbers and names in Stata's formats."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmixed.stata_formats import abbreviated_name, fixed, general


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # As printed in tables of Stata's manuals and logs.
        (6.2098958, "6.209896"),
        (0.03901240, ".0390124"),
        (-0.13171071, "-.1317107"),
        (-1.1827871, "-1.182787"),
        (25337.4812, "25337.48"),
        (0.0000493, ".0000493"),
        (1.04e-9, "1.04e-09"),
        (4.8e-6, "4.80e-06"),
        (0.0000182, ".0000182"),
        (9.9e304, "9.9e+304"),
        (1.62e-26, "1.62e-26"),
        (0.014704, ".014704"),
        (0.27459301, ".274593"),
        (123456.78, "123456.8"),
        (1234567.8, "1234568"),
        (23456789.5, "2.35e+07"),
        (0, "0"),
        (1, "1"),
        (0.99999999, "1"),
        (9.99999999, "10"),
        (-999999.96, "-1000000"),
        (math.inf, "."),
        (None, "."),
    ],
)
def test_general_numbers_are_those_of_the_format_9_0g(value: float | None, text: str) -> None:
    assert general(value) == text


@given(st.floats(-1e300, 1e300), st.integers(9, 12))
def test_general_numbers_fit_their_width_and_are_near_the_number(value: float, width: int) -> None:
    text = general(value, width)
    assert len(text) <= width
    assert float(text) == pytest.approx(value, rel=0.05, abs=0)


def test_log_likelihoods_have_one_digit_more() -> None:
    assert [general(v, 10) for v in (-14024.79883, -663.4256001, 769.906921)] == [
        "-14024.799",
        "-663.4256",
        "769.90692",
    ]


def test_fixed_numbers_that_are_too_long_become_general_ones() -> None:
    assert fixed(1234567.891, 2, 8) == "1234568"
    assert fixed(0.00004, 3) == "0.000"


def test_long_names_keep_their_beginning_and_their_last_character() -> None:
    assert abbreviated_name("log_retail_emp") == "log_retail~p"
    assert len(abbreviated_name("a" * 32)) == 12
