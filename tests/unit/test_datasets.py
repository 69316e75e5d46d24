"""Bundled data sets: contents, types, descriptions and errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import datasets
from jaxmixed.errors import DataError
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "hsb82",
    "exam",
    "sleepstudy",
    "egsingle",
    "pig",
    "mini_wright",
    "dyestuff",
    "dyestuff2",
    "pastes",
    "penicillin",
    "machines",
    "oats",
    "orthodont",
    "ovary",
    "classrooms",
    "depression",
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_datasets", ROOT / "benchmarks" / "make_datasets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_lists_every_data_set() -> None:
    assert datasets.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_what_its_description_says(name: str) -> None:
    data, description = datasets.load(name), datasets.describe(name)
    assert description.name == name
    assert len(data) == description.rows
    assert list(data.columns) == [column.name for column in description.columns]
    for column in description.columns:
        dtype = data[column.name].dtype
        if column.kind in ("id", "factor"):
            assert isinstance(dtype, pd.CategoricalDtype)
            assert all(isinstance(level, str) and level for level in dtype.categories)
            assert set(dtype.categories) == set(data[column.name])
            if column.kind == "factor":
                assert tuple(dtype.categories) == column.levels
        else:
            assert dtype == {"integer": "int64", "number": "float64"}[column.kind]
            assert np.isfinite(data[column.name]).all()
    assert not data.isna().any().any()


@pytest.mark.parametrize("name", NAMES)
def test_the_bundled_file_is_what_the_script_makes(name: str, script: ModuleType) -> None:
    made, loaded = script.datasets()[name], datasets.load(name)
    assert set(made.columns) == set(loaded.columns)
    for column in loaded.columns:
        if isinstance(loaded[column].dtype, pd.CategoricalDtype):
            assert list(loaded[column]) == list(made[column])
        else:
            np.testing.assert_array_equal(loaded[column], made[column].astype(loaded[column].dtype))


@pytest.mark.parametrize("name", NAMES)
def test_the_example_uses_columns_of_the_data(name: str) -> None:
    data = datasets.load(name)
    description = datasets.describe(name)
    frame = build_frame(parse(description.example), data)
    assert len(frame.y) == len(data)
    assert frame.groups or description.residuals


def test_the_simulated_set_gives_back_its_true_values() -> None:
    description = datasets.describe("classrooms")
    fit = jm.mixed(description.example, datasets.load("classrooms"))
    truth = pd.Series({"(Intercept)": 40.0, "ses": 3.0, "parental_educ": 0.8, "teacher_exp": 0.15})
    assert not fit.is_singular
    assert (abs(fit.params[truth.index] - truth) < 3 * fit.bse[truth.index]).all()
    sds = fit.varcorr[fit.varcorr["effect2"].isna()].set_index(["group", "effect"])
    for key, sd in {("school", "(Intercept)"): 4.0, ("school", "ses"): 1.0}.items():
        assert sds.loc[key, "sd_or_corr_conf_low"] < sd < sds.loc[key, "sd_or_corr_conf_high"]
    low, high = sds.loc[("school:classroom", "(Intercept)"), ["sd_or_corr_conf_low", "sd_or_corr_conf_high"]]
    assert low < 2.5 < high
    assert fit.sigma == pytest.approx(8.0, rel=0.05)


def test_the_simulated_trial_gives_back_its_true_values() -> None:
    data = datasets.load("depression")
    first = data[data["visit"] == "W1"]  # nobody has left yet
    X = np.column_stack([np.ones(len(first)), first["baseline"] - 24, first["arm"] == "drug"])
    beta, rss, _, _ = np.linalg.lstsq(X, first["change"].to_numpy(float), rcond=None)
    sigma = np.sqrt(rss[0] / (len(first) - 3))
    std_errors = sigma * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
    assert (np.abs(beta - [-1.5, -0.3, -0.5]) < 3 * std_errors).all()
    assert sigma == pytest.approx(3.5, abs=3 * 3.5 / np.sqrt(2 * len(first)))


def test_patients_of_the_trial_leave_and_miss_visits() -> None:
    data = datasets.load("depression")
    there = data.pivot(index="patient", columns="visit", values="change").notna()
    assert there["W1"].all()
    assert there.sum().tolist() == [200, 178, 157, 141, 140]
    assert len(there.drop_duplicates()) == 9
    arms = data.groupby("patient", observed=True)["arm"].nunique()
    assert (arms == 1).all()


def test_an_example_with_residuals_prints_them() -> None:
    assert str(datasets.describe("ovary")).endswith(
        'Example: mixed("follicles ~ Time + (1 | Mare)", data, residuals="ar1(occasion | Mare)")'
    )


def test_identifiers_keep_the_order_of_first_appearance() -> None:
    subjects = datasets.load("sleepstudy")["Subject"]
    assert list(subjects.cat.categories[:3]) == ["308", "309", "310"]
    assert list(subjects.cat.categories) == list(dict.fromkeys(subjects))


def test_hsb82_has_the_textbook_columns_and_summaries() -> None:
    data = datasets.load("hsb82")
    assert list(data.columns) == [
        "school",
        "mathach",
        "ses",
        "sector",
        "meanses",
        "minority",
        "female",
        "cses",
    ]
    assert data["school"].nunique() == 160
    assert data["mathach"].mean() == pytest.approx(12.748, abs=5e-4)
    assert data["ses"].mean() == pytest.approx(0.000, abs=5e-4)
    assert data["minority"].mean() == pytest.approx(0.275, abs=5e-4)
    assert data["female"].mean() == pytest.approx(0.528, abs=5e-4)
    assert data.drop_duplicates("school")["sector"].value_counts().to_dict() == {"Public": 90, "Catholic": 70}
    np.testing.assert_allclose(data["cses"], data["ses"] - data["meanses"], atol=1e-12)


def test_exam_has_the_published_group_sizes() -> None:
    sizes = datasets.load("exam").groupby("school", observed=True).size()
    assert (len(sizes), sizes.min(), round(sizes.mean(), 1), sizes.max()) == (65, 2, 62.4, 198)


def test_egsingle_children_belong_to_one_school() -> None:
    data = datasets.load("egsingle")
    assert data["childid"].nunique() == 1721
    assert data.groupby("childid", observed=True)["schoolid"].nunique().max() == 1


def test_mini_wright_holds_the_published_pairs() -> None:
    data = datasets.load("mini_wright")
    wide = data.pivot(index="id", columns="occasion", values="wm")
    assert wide.shape == (17, 2)
    assert wide.loc["1"].tolist() == [512, 525]
    assert wide.loc["17"].tolist() == [451, 443]


def test_classrooms_number_anew_in_every_school() -> None:
    data = datasets.load("classrooms")
    assert data["school"].nunique() == 50
    assert data["classroom"].nunique() == 5
    pairs = data.groupby(["school", "classroom"], observed=True)
    assert pairs.ngroups > 50
    assert pairs["teacher_exp"].nunique().max() == 1


def test_every_call_gives_a_fresh_frame() -> None:
    first = datasets.load("pig")
    first.loc[0, "weight"] = -1.0
    assert datasets.load("pig").loc[0, "weight"] == 24.0


def test_a_description_prints_title_columns_source_and_example() -> None:
    text = str(datasets.describe("machines"))
    assert text.startswith("machines: Productivity of six workers")
    assert "54 rows, 3 columns" in text
    assert "Machine         factor      brand of machine (A, B, C)" in text
    assert "Milliken & Johnson" in text
    assert 'mixed("score ~ Machine + (0 + Machine | Worker)", data)' in text


@pytest.mark.parametrize("use", [datasets.load, datasets.describe])
def test_an_unknown_name_is_refused_with_close_matches(use: object) -> None:
    assert callable(use)
    with pytest.raises(DataError, match=r"no bundled data set 'sleepstdy'.*'sleepstudy'.*Available: hsb82, "):
        use("sleepstdy")
    with pytest.raises(DataError, match="'hsb82'"):
        use("HSB82")


@pytest.mark.parametrize("name", ["", "zzzz", "../errors", "sleepstudy.csv.gz", None, 3, ["pig"]])
def test_anything_but_a_listed_name_is_refused(name: object) -> None:
    with pytest.raises(DataError, match="There is no bundled data set"):
        datasets.load(name)  # type: ignore[arg-type]
