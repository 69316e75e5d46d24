"""The random designs are what they promise, and the library's encoding of their formulas is theirs."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmixed.formula import parse
from jaxmixed.frame import build_frame
from tests.support.designs import random_design

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_encoded_formula_equals_the_arrays_written_by_hand(seed: int) -> None:
    design = random_design(seed)
    model = design.model
    frame = build_frame(parse(design.formula), design.data, weights=design.weights, offset=design.offset)
    assert frame.x_names == design.x_names
    np.testing.assert_array_equal(frame.X, model.X)
    np.testing.assert_array_equal(frame.y, model.y)
    for ours, theirs in ((frame.weights, model.weights), (frame.offset, model.offset)):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            np.testing.assert_array_equal(ours, theirs)
    assert len(frame.groups) == len(design.terms)
    for group, term, block in zip(frame.groups, design.terms, model.blocks, strict=True):
        assert (group.label, group.columns, group.names) == (term.label, term.columns, term.names)
        np.testing.assert_array_equal(group.Z, block.Z)
        labels = [str(group.levels[code]) for code in group.codes]
        assert labels == [term.levels[code] for code in block.codes]


def test_same_seed_same_design() -> None:
    first, second = random_design(7), random_design(7)
    assert first.formula == second.formula
    assert first.data.equals(second.data)


def test_the_first_designs_cover_depths_effects_weights_offsets_and_singletons() -> None:
    designs = [random_design(seed) for seed in SEEDS]
    assert {len(design.terms) for design in designs} == {1, 2, 3}
    assert {len(term.names) for design in designs for term in design.terms} == {1, 2, 3, 4}
    assert {design.weights is None for design in designs} == {True, False}
    assert {design.offset is None for design in designs} == {True, False}
    assert any(np.bincount(block.codes).min() == 1 for d in designs for block in d.model.blocks)
    assert any(":" in term.label for design in designs for term in design.terms)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_depth_and_the_number_of_effects_can_be_asked_for(depth: int) -> None:
    for seed in range(10):
        design = random_design(seed, depth=depth, max_effects=2, weights=True, offset=False)
        assert len(design.terms) == depth
        assert max(len(term.names) for term in design.terms) <= 2
        assert design.arguments == {"weights": "w", "offset": None}
