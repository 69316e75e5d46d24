"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from jaxmixed import datasets, lanes, search
from tests.support.compilation import QUICKLY

# Of all programs with the usual options. Tests run them for milliseconds and compile them for seconds.
search.PROGRAM.options.update(QUICKLY)  # type: ignore[arg-type]
lanes.FUSED_PROGRAM.options.update(QUICKLY)  # type: ignore[arg-type]  # test_lanes has what users run

gc.disable()  # while tests are collected


SAME_FITS = {"test_lmer_cases.py": "stored cases", "test_inference_cases.py": "stored cases"}
"""Files whose tests ask for the same fits."""


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a file has fitted and compiled, or several that ask for the same, stays with one worker."""
    for item in items:
        group = SAME_FITS.get(item.path.name, str(item.path))
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """Modules and thousands of tests stay to the end: the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 20, 50)  # of what tests trace, too, most stays
    gc.enable()


@pytest.fixture(autouse=True)
def _one_number_of_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual choice of their number would compile the same programs anew; test_lanes looks at it."""
    monkeypatch.setattr(lanes, "LANES", (16,))


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
