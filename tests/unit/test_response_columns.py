"""Responses in every form that they may be given: always the same numbers."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxmixed as jm
from jaxmixed.response_columns import response_columns

N, M = 7, 5
INDEX = pd.RangeIndex(N)
ALL = np.ones(N, dtype=bool)
KEPT = np.array([True, True, False, True, True, False, True])
Y = np.random.default_rng(0).normal(size=(N, M))
Y[2, 1] = Y[4, 3] = np.nan
NAMES = [f"gene {j}" for j in range(M)]


def forms(folder) -> dict[str, object]:
    """The same responses in every form."""
    frame = pd.DataFrame(Y, columns=NAMES)
    np.save(folder / "y.npy", Y)
    np.save(folder / "f.npy", np.asfortranarray(Y))
    frame.to_parquet(folder / "y.parquet")
    memory = np.memmap(folder / "y.raw", dtype=np.float64, mode="w+", shape=Y.shape)
    memory[:] = Y
    return {
        "array": Y,
        "nested list": Y.tolist(),
        "memory map": memory,
        "npy": folder / "y.npy",
        "npy by columns": str(folder / "f.npy"),
        "parquet": folder / "y.parquet",
        "pandas": frame,
        "nullable": frame.convert_dtypes(),
        "polars": pl.DataFrame(Y, schema=NAMES),
        "arrow": pa.table(dict(zip(NAMES, Y.T, strict=True))),
    }


KINDS = ("array", "nested list", "memory map", "npy", "npy by columns")
NAMED = ("parquet", "pandas", "nullable", "polars", "arrow")


@pytest.mark.parametrize("kind", KINDS + NAMED)
@pytest.mark.parametrize("kept", [ALL, KEPT], ids=["all rows", "some rows"])
def test_every_form_gives_the_same_numbers(kind, kept, tmp_path):
    given = forms(tmp_path)[kind]
    found = response_columns(given, INDEX[kept], kept)
    assert len(found.names) == M
    if kind in NAMED:
        assert found.names.tolist() == NAMES
    for first, last in ((0, M), (1, 3), (4, 5)):
        values = found.read(first, last)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, Y[kept, first:last])


def test_names_of_columns_of_the_data():
    data = pd.DataFrame(Y, columns=NAMES).assign(count=np.arange(N), flag=np.arange(N) > 2)
    found = response_columns(["gene 3", "count", "flag"], INDEX[KEPT], KEPT, data)
    assert found.names.tolist() == ["gene 3", "count", "flag"]
    np.testing.assert_array_equal(found.read(0, 1)[:, 0], Y[KEPT, 3])
    np.testing.assert_array_equal(found.read(1, 3), np.column_stack([np.arange(N), np.arange(N) > 2])[KEPT])


def test_rows_used_may_be_given_alone():
    found = response_columns(Y[KEPT], INDEX[KEPT], KEPT)
    np.testing.assert_array_equal(found.read(0, M), Y[KEPT])
    table = pd.DataFrame(Y[KEPT], index=INDEX[KEPT], columns=NAMES)
    np.testing.assert_array_equal(response_columns(table, INDEX[KEPT], KEPT).read(0, M), Y[KEPT])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Y[:3], "the responses have 3 rows, but the data have 7, of which 5 are used"),
        (Y[0], "shape"),
        (Y.astype(complex), "complex128"),
        (np.array([["a"] * M] * N), "<U1"),
        (3.5, "float are not a table"),
        ([["a", 1.0]] * N, "must be a table of numbers"),
        (["gene 0", "nothing"], "no column 'nothing'"),
        (["gene 0", "gene 0"], "'gene 0' is listed twice"),
        (["text"], "'text' holds text"),
        ("absent.npy", "is no file"),
        (pd.DataFrame(Y, index=range(1, N + 1)), "index of the responses does not match"),
        (pd.DataFrame(Y, columns=["a", "b", "c", "d", "a"]), "'a' occurs twice"),
        (pd.DataFrame({"x": ["a"] * N}), "'x' holds text"),
    ],
)
def test_what_cannot_be_responses_is_refused_in_words(given, message):
    data = pd.DataFrame(Y, columns=NAMES).assign(text=list("abcdefg"))
    with pytest.raises(jm.DataError, match=message):
        response_columns(given, INDEX[KEPT], KEPT, data)


def test_files_that_are_something_else_are_refused_by_name(tmp_path):
    for name, message in (("a.npy", "cannot be read as a .npy file"), ("a.parquet", "as a Parquet file")):
        (tmp_path / name).write_bytes(b"something else entirely")
        with pytest.raises(jm.DataError, match=message):
            response_columns(tmp_path / name, INDEX, ALL)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(jm.DataError, match=r"must end in .npy or .parquet"):
        response_columns(tmp_path / "a.csv", INDEX, ALL)
    pq.write_table(pa.table({"g": list("abcdefg"), "y": Y[:, 0]}), tmp_path / "b.parquet")
    with pytest.raises(jm.DataError, match=r"'g' of .* every column must be a response"):
        response_columns(tmp_path / "b.parquet", INDEX, ALL)


def test_objects_in_a_file_are_never_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[print]] * N, dtype=object), allow_pickle=True)
    with pytest.raises(jm.DataError, match=r"cannot be read as a .npy file"):
        response_columns(tmp_path / "o.npy", INDEX, ALL)
