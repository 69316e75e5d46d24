"""Maps of the real line onto the ranges of parameters."""

import numpy as np
import pytest

from jaxmixed import kernels
from jaxmixed.errors import DesignError

WEEKS = np.array([0.0, 1.0, 2.0, 4.0, 7.0])


@pytest.mark.parametrize(
    "support",
    [kernels.Positive(2.0), kernels.Correlation(-0.4), kernels.Unit(0.2), kernels.Real(-3.0)],
    ids=lambda own: type(own).__name__,
)
def test_a_support_maps_the_line_onto_its_range(support: kernels.Support) -> None:
    free = np.linspace(-3, 3, 7)
    natural = support.natural(free)
    assert ((natural > support.low) & (natural < support.high)).all()
    np.testing.assert_allclose([support.free(float(value)) for value in natural], free, atol=1e-12)
    numeric = (support.natural(free + 1e-6) - support.natural(free - 1e-6)) / 2e-6
    np.testing.assert_allclose(support.slope(free), numeric, rtol=1e-8)
    np.testing.assert_allclose(support.natural(np.array(support.free(support.start))), support.start)


def test_a_length_starts_at_a_quarter_of_the_range() -> None:
    assert kernels.Length().start_at(np.array([2.0, 10.0, 4.0])) == 2.0
    assert kernels.Length().start_at(np.array([[0.0, 0.0], [3.0, 4.0]])) == 1.25
    assert kernels.Length(7.0).start_at(WEEKS) == 7.0


def test_a_start_outside_the_range_is_refused() -> None:
    for support, start, message in (
        (kernels.Correlation, 1.0, "between -1 and 1"),
        (kernels.Unit, 0.0, "between 0 and 1"),
        (kernels.Length, -2.0, "between 0 and inf"),
        (kernels.Real, np.nan, "between -inf and inf"),
    ):
        with pytest.raises(DesignError, match=message):
            support(start)
