"""Estimates written to a file as they are found: the tables of `ManyResults`, in bounded memory."""

import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import jaxmixed as jm
from jaxmixed.errors import ConvergenceWarning, InterruptedWarning
from tests.support.interrupts import interrupt_in_block

RIGHT = "~ Days + (1 | Subject)"


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return jm.datasets.load("sleepstudy")


@pytest.fixture(scope="module")
def responses(data) -> pd.DataFrame:
    return jm.mixed("Reaction ~ Days + (1 | Subject)", data).simulate(12, seed=1)


@pytest.mark.parametrize("names", ["text", "numbers"])
def test_the_file_holds_the_wide_table(data, responses, names, tmp_path):
    Y = responses.assign(sim_4=1.0) if names == "text" else responses.assign(sim_4=1.0).to_numpy()
    with pytest.warns(ConvergenceWarning, match="1 of 12 models failed; the column 'reason' of x.parquet"):
        written = jm.fit_many(RIGHT, data, Y, out=tmp_path / "x.parquet", block=5)
    assert (written.models, written.converged, written.failed) == (12, 11, 1)
    assert len(written) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = jm.fit_many(RIGHT, data, Y).to_frame()
    assert written.singular == expected["is_singular"].sum()
    read = written.read()
    assert read.columns.tolist() == expected.columns.tolist()
    assert read.index.tolist() == expected.index.tolist()
    for name in expected:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(read[name], expected[name], rtol=1e-9)
        else:
            assert read[name].tolist() == expected[name].tolist()
    assert pq.ParquetFile(written.path).num_row_groups == 3
    assert written.read(["llf"]).columns.tolist() == ["llf"]


def test_a_file_of_responses_becomes_a_file_of_estimates(data, responses, tmp_path):
    responses.to_parquet(tmp_path / "y.parquet")
    np.save(tmp_path / "y.npy", responses.to_numpy())
    one = jm.fit_many(RIGHT, data, tmp_path / "y.parquet", out=tmp_path / "a.parquet", block=4).read()
    two = jm.fit_many(RIGHT, data, tmp_path / "y.npy", out=tmp_path / "b.parquet").read()
    assert one.index.tolist() == responses.columns.tolist()
    np.testing.assert_allclose(one["llf"], two["llf"], rtol=1e-12)


def test_an_interrupt_closes_the_file_with_what_is_done(data, responses, tmp_path, monkeypatch):
    interrupt_in_block(3, monkeypatch)
    with pytest.warns(InterruptedWarning, match="8 of 12"):
        written = jm.fit_many(RIGHT, data, responses, out=tmp_path / "x.parquet", block=4, devices=1)
    assert (written.models, written.converged) == (8, 8)
    assert written.read().index.tolist() == responses.columns[:8].tolist()


def test_a_failure_in_a_block_reaches_the_caller_and_the_file_is_closed(data, tmp_path):
    W = np.ones((180, 4))
    W[0, 3] = -1
    formula = "Reaction ~ Days + (1 | Subject)"
    with pytest.raises(jm.DataError, match="not negative"):
        jm.fit_many(formula, data, row_weights=W, out=tmp_path / "x.parquet", block=2, devices=1)
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2


def test_groups_of_the_data_can_be_written_too(tmp_path):
    pig = jm.datasets.load("pig")
    pig = pig.assign(litter=pig["id"].cat.codes % 3)
    written = jm.fit_many("weight ~ week + (1 | id)", pig, by="litter", out=tmp_path / "x.parquet")
    expected = jm.fit_many("weight ~ week + (1 | id)", pig, by="litter")
    np.testing.assert_array_equal(written.read()["estimate[week]"], expected.params["week"])
    assert written.read().index.tolist() == [0, 1, 2]
