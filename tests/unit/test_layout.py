"""Which factors are eliminated, which join the dense root, and roots that do not fit into memory."""

import tracemalloc
from pathlib import PurePosixPath

import numpy as np
import pytest

from jaxmixed import layout
from jaxmixed.errors import DesignError
from jaxmixed.layout import Grouping, Layout, arrange, available_memory, is_nested, root_bytes


def factor(codes: np.ndarray, label: str, effects: int = 1) -> Grouping:
    found, codes = np.unique(codes, return_inverse=True)
    return Grouping(np.ones((len(codes), effects)), codes, len(found), label)


def by_size(*factors: Grouping) -> list[Grouping]:
    return sorted(factors, key=lambda one: -one.size)


def labels(groupings: list[Grouping]) -> tuple[list[str], list[str]]:
    """Labels of the chain and of the root."""
    found = arrange(groupings)
    return [groupings[k].label for k in found.chain], [groupings[k].label for k in found.root]


@pytest.fixture
def pupils(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pupils in schools, who live in neighbourhoods, seen several times by other teachers."""
    pupil = rng.permutation(np.repeat(np.arange(60), 4))
    home = rng.permutation(np.resize(np.arange(11), 60))
    return {
        "pupil": pupil,
        "school": (pupil // 10),
        "neighbourhood": home[pupil],
        "teacher": rng.permutation(np.resize(np.arange(9), len(pupil))),
    }


def factors(of: dict[str, np.ndarray], *names: str) -> list[Grouping]:
    return by_size(*(factor(of[name], name) for name in names))


def test_nesting_is_found_from_the_codes(pupils: dict[str, np.ndarray]) -> None:
    pupil, school, teacher = (factor(pupils[name], name) for name in ("pupil", "school", "teacher"))
    assert is_nested(pupil, school)
    assert is_nested(school, school)
    assert not is_nested(school, pupil)
    assert not is_nested(pupil, teacher)
    assert not is_nested(teacher, school)


def test_a_single_row_that_strays_undoes_nesting(pupils: dict[str, np.ndarray]) -> None:
    school = pupils["school"].copy()
    school[7] = (school[7] + 1) % 6
    assert not is_nested(factor(pupils["pupil"], "pupil"), factor(school, "school"))


def test_without_factors_there_is_nothing_to_arrange() -> None:
    assert arrange([]) == Layout((), ())


def test_nested_factors_are_one_chain_without_a_root(pupils: dict[str, np.ndarray]) -> None:
    region = factor(pupils["school"] // 3, "region")
    groupings = [*factors(pupils, "pupil", "school"), region]
    found = arrange(groupings)
    assert found == Layout((0, 1, 2), ())
    assert found.order == (0, 1, 2)


def test_pupils_in_schools_are_eliminated_and_their_teachers_are_not(pupils: dict[str, np.ndarray]) -> None:
    assert labels(factors(pupils, "pupil", "school", "teacher")) == (["pupil", "school"], ["teacher"])


def test_of_two_crossed_factors_above_the_larger_is_eliminated(pupils: dict[str, np.ndarray]) -> None:
    groupings = factors(pupils, "pupil", "school", "neighbourhood")
    assert labels(groupings) == (["pupil", "neighbourhood"], ["school"])
    assert arrange(groupings).order == (0, 1, 2)


def test_of_two_crossed_pairs_of_nested_factors_one_is_eliminated(rng: np.random.Generator) -> None:
    person, word = rng.integers(0, 40, 400), rng.integers(0, 15, 400)
    person[:40], word[:15] = np.arange(40), np.arange(15)
    groupings = by_size(
        factor(person, "person"), factor(person // 8, "town"), factor(word, "word"), factor(word // 6, "kind")
    )
    assert labels(groupings) == (["person", "town"], ["word", "kind"])


def test_the_longest_chain_is_not_the_cheapest_when_its_factors_are_small(rng: np.random.Generator) -> None:
    person, word = rng.permutation(np.resize(np.arange(300), 600)), rng.permutation(600) % 6
    groupings = by_size(factor(person, "person"), factor(word, "word"), factor(word // 3, "kind"))
    assert labels(groupings) == (["person"], ["word", "kind"])


def test_the_number_of_effects_decides_too(rng: np.random.Generator) -> None:
    many, few = (rng.permutation(np.resize(np.arange(levels), 800)) for levels in (400, 200))
    assert labels([factor(many, "many"), factor(few, "few")]) == (["many"], ["few"])
    assert labels([factor(many, "many"), factor(few, "few", 3)]) == (["few"], ["many"])


def test_factors_that_define_the_same_groups_are_one_chain(pupils: dict[str, np.ndarray]) -> None:
    first, second = factor(pupils["school"], "school"), factor(-pupils["school"], "again")
    teacher = factor(pupils["teacher"], "teacher")
    assert is_nested(first, second)
    assert is_nested(second, first)
    assert arrange([first, second]) == Layout((0, 1), ())
    assert arrange([teacher, first, second]) == Layout((1, 2), (0,))  # nine columns remain, not twelve
    pupil = factor(pupils["pupil"], "pupil")
    assert arrange([pupil, teacher, first, second]) == Layout((0, 2, 3), (1,))


@pytest.mark.parametrize("seed", range(5))
def test_every_factor_is_placed_once_and_the_chain_is_nested(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.resize(np.arange(24), 200))
    owners = [rng.integers(0, m, 24)[fine] for m in (8, 5)]
    others = [rng.integers(0, m, 200) for m in (10, 3)]
    groupings = by_size(*(factor(codes, f"g{k}") for k, codes in enumerate([fine, *owners, *others])))
    found = arrange(groupings)
    assert sorted(found.order) == list(range(5))
    assert found.order == (*found.chain, *found.root)
    for i, j in zip(found.chain, found.chain[1:], strict=False):
        assert is_nested(groupings[i], groupings[j])


# Memory


def crossed(effects: int = 1) -> list[Grouping]:
    """Three groups of two rows each, crossed with two levels."""
    return [
        factor(np.array([0, 0, 1, 1, 2, 2]), "plate", effects),
        factor(np.array([0, 1, 0, 1, 0, 1]), "sample", effects),
    ]


def test_the_memory_is_that_of_the_roots_matrices_and_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ROOT_COPIES", 10)
    monkeypatch.setattr(layout, "PAIR_BYTES", 1000)
    # Two columns; each of three groups meets both of them: three pairs.
    assert root_bytes(Layout((0,), (1,)), crossed()) == 8 * 10 * 2**2 + 1000 * 9
    # Four columns, all met: ten pairs.
    assert root_bytes(Layout((0,), (1,)), crossed(2)) == 8 * 10 * 4**2 + 1000 * 30
    monkeypatch.setattr(layout, "LARGEST_PAIRS", 5)  # more are never listed
    assert root_bytes(Layout((0,), (1,)), crossed()) == 8 * 10 * 2**2 + 1000 * 5


def test_a_root_that_does_not_fit_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "available_memory", lambda: 100.0)
    row = np.arange(60)
    groupings = [factor(row // 2, "plate"), factor(row % 3, "sample", 2), factor(row % 2, "day")]
    with pytest.raises(DesignError) as caught:
        arrange(groupings)
    text = str(caught.value)
    assert f"({root_bytes(Layout((0,), (1, 2)), groupings):,.0f} bytes)" in text
    assert "0.0 GB are available" in text
    assert "'plate' would be eliminated" in text
    assert "'sample' (3 levels × 2 effects), 'day' (2 levels × 1 effect) then form" in text
    assert "a dense matrix of 8 columns" in text
    assert "The cause is 'sample': merge or drop its rarely seen levels" in text


def test_what_fits_exactly_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Layout((0,), (1,))
    needed = root_bytes(expected, crossed())
    monkeypatch.setattr(layout, "available_memory", lambda: needed)
    assert arrange(crossed()) == expected
    monkeypatch.setattr(layout, "available_memory", lambda: needed - 1)
    with pytest.raises(DesignError, match="merge or drop"):
        arrange(crossed())


def test_nested_factors_are_never_refused(
    pupils: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "available_memory", lambda: 0.0)
    assert arrange(factors(pupils, "pupil", "school")).root == ()


def test_an_enormous_root_is_refused_before_anything_of_its_size_is_made(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "available_memory", lambda: 64e9)
    groupings = [
        factor(rng.permutation(np.resize(np.arange(levels), 60_000)), label)
        for levels, label in ((50_000, "buyer"), (40_000, "seller"))
    ]
    tracemalloc.start()
    try:
        with pytest.raises(DesignError, match=r"40,000 columns, 12\.8 GB each time it is stored"):
            arrange(groupings)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


class Files(PurePosixPath):
    """Files of a machine: what the code under test reads of them."""

    texts: dict[str, str] = {}  # noqa: RUF012

    def read_text(self, encoding: str) -> str:
        assert encoding == "utf-8"
        try:
            return self.texts[str(self)]
        except KeyError:
            raise FileNotFoundError(str(self)) from None


MEMINFO = {"/proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  1000 kB\n"}
USED = {"/sys/fs/cgroup/memory.current": "300000\n"}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, np.inf),
        (MEMINFO, 1_024_000),
        (MEMINFO | USED | {"/sys/fs/cgroup/memory.max": "max\n"}, 1_024_000),
        (MEMINFO | USED | {"/sys/fs/cgroup/memory.max": "800000\n"}, 500_000),
        (MEMINFO | USED | {"/sys/fs/cgroup/memory.max": "90000000\n"}, 1_024_000),
        (MEMINFO | USED | {"/sys/fs/cgroup/memory.max": "200000\n"}, 0),
        (MEMINFO | USED | {"/sys/fs/cgroup/memory.max": "unknown\n"}, 1_024_000),
        ({"/proc/meminfo": "MemAvailable:\n"}, np.inf),
    ],
)
def test_the_memory_available_is_what_the_system_says(
    texts: dict[str, str], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Files, "texts", texts)
    monkeypatch.setattr(layout, "Path", Files)
    assert available_memory() == expected


def test_this_machine_has_memory() -> None:
    assert available_memory() > 0
