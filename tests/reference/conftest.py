"""Fixtures of the comparisons with stored results."""

from __future__ import annotations

import pytest

from tests.reference.cases import Fitted, fit_case


@pytest.fixture
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """The fit of the case named by the test's parameter; each case is fitted once per process."""
    return fit_case(request.param)
