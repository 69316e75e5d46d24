"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
import sys
from collections.abc import Iterator

import pytest

import jaxmixed

# Imported while tests are collected: importing JAX draws from NumPy's global generator, which no test may do.
MODULES = {
    module.name: importlib.import_module(module.name)
    for module in pkgutil.walk_packages(jaxmixed.__path__, "jaxmixed.")
    if not module.name.endswith("__main__")
}


@pytest.fixture(autouse=True)
def _figures_are_closed() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    results = doctest.testmod(MODULES[name], optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples of {name} fail"


def test_the_public_functions_have_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    without = []
    for name in (
        "mixed",
        "lrtest",
        "compare",
        "fit_many",
        "simulate",
        "power",
        "study",
        "MixedModelRegressor",
        "solve",
        "arrays",
    ):
        function = vars(jaxmixed).get(name) or jaxmixed.__getattr__(name)
        if not any(test.examples for test in finder.find(function)):
            without.append(name)
    assert not without
