"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from jaxmixed import datasets


@pytest.fixture
def sleepstudy() -> pd.DataFrame:
    """Reaction times over ten days of 18 subjects; a fresh copy, to be modified at will."""
    return datasets.load("sleepstudy")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240229)


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone() -> Iterator[None]:
    """No code under test may draw from, or seed, NumPy's global generator."""
    before = np.random.get_state()[1].copy()
    yield
    assert np.array_equal(before, np.random.get_state()[1]), "NumPy's global random state was changed"
