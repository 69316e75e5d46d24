"""Write the bundled data files `jaxmixed/datasets/data/*.csv.gz`.

The real sets are copied, with columns renamed or recoded as their descriptions say, from
`tests/reference/data` (see the README in `tests/reference`); simulated sets are drawn from fixed seeds.
Every run writes the same content. Run from the root of the repository::

    python benchmarks/make_datasets.py
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "reference" / "data"
TARGET = ROOT / "jaxmixed" / "datasets" / "data"
SEED = 20240229
TRIAL_SEED = 20240302

MINI_WRIGHT = (
    "512 525 430 415 520 508 428 444 500 500 600 625 364 460 380 390 658 642 445 432 432 420 626 605 260 227 "
    "477 467 259 268 350 370 451 443"
)


def read(file: str) -> pd.DataFrame:
    """Read a source file as text, so that every number is copied digit by digit."""
    return pd.read_csv(SOURCE / file, dtype=str, keep_default_na=False)


def indicator(values: pd.Series, one: str) -> pd.Series:
    """Code a two-valued text column as "1" where it equals `one`, else "0"."""
    return (values == one).map({True: "1", False: "0"})


def hsb82() -> pd.DataFrame:
    """High School and Beyond, with the column names of the textbook."""
    data = read("Hsb82.csv.gz").rename(columns={"mAch": "mathach"})
    data["minority"] = indicator(data["minrty"], "Yes")
    data["female"] = indicator(data["sx"], "Female")
    return data[["school", "mathach", "ses", "sector", "meanses", "minority", "female", "cses"]]


def exam() -> pd.DataFrame:
    """Inner London examination scores."""
    columns = ["school", "normexam", "standLRT", "sex", "schgend", "schavg", "vr", "intake", "type"]
    return read("Exam.csv.gz")[columns]


def egsingle() -> pd.DataFrame:
    """Sustaining Effects Study, with an indicator for girls."""
    data = read("egsingle.csv.gz")
    data["female"] = indicator(data["female"], "Female")
    return data


def mini_wright() -> pd.DataFrame:
    """Two readings of each of 17 subjects, in long format."""
    readings = MINI_WRIGHT.split()
    rows = [(str(i // 2 + 1), str(i % 2 + 1), reading) for i, reading in enumerate(readings)]
    return pd.DataFrame(rows, columns=["id", "occasion", "wm"])


def classrooms(seed: int = SEED) -> pd.DataFrame:
    """Simulate pupils in classrooms in schools; the true values are in the set's description."""
    rng = np.random.default_rng(seed)
    class_counts = rng.integers(1, 6, size=50)
    school_of_class = np.repeat(np.arange(50), class_counts)
    pupil_counts = rng.integers(8, 25, size=school_of_class.size)
    class_of_pupil = np.repeat(np.arange(school_of_class.size), pupil_counts)
    school = school_of_class[class_of_pupil]
    first_class = np.cumsum(class_counts) - class_counts
    room = class_of_pupil - first_class[school] + 1
    n = school.size

    ses = np.round(0.5 * rng.standard_normal(50)[school] + np.sqrt(0.75) * rng.standard_normal(n), 2)
    education = np.clip(np.round(13 + 2 * ses + 1.5 * rng.standard_normal(n)), 8, 20).astype(int)
    experience = rng.integers(0, 31, size=school_of_class.size)[class_of_pupil]
    factor = np.linalg.cholesky(np.array([[16.0, 1.2], [1.2, 1.0]]))
    school_effect = rng.standard_normal((50, 2)) @ factor.T
    class_effect = 2.5 * rng.standard_normal(school_of_class.size)
    score = (
        40 + 3 * ses + 0.8 * education + 0.15 * experience
        + school_effect[school, 0] + school_effect[school, 1] * ses
        + class_effect[class_of_pupil] + 8 * rng.standard_normal(n)
    )  # fmt: skip
    return pd.DataFrame(
        {
            "school": [f"s{i + 1:02d}" for i in school],
            "classroom": room.astype(str),
            "test_score": [f"{value:.1f}" for value in score],
            "ses": [f"{value:.2f}" for value in ses],
            "parental_educ": education.astype(str),
            "teacher_exp": experience.astype(str),
        }
    )


def depression(seed: int = TRIAL_SEED) -> pd.DataFrame:
    """Simulate a trial with five visits and dropouts; the true values are in the set's description."""
    rng = np.random.default_rng(seed)
    n, weeks = 200, np.array([1, 2, 4, 6, 8])
    drug = rng.permutation(np.repeat([0, 1], n // 2))
    baseline = np.clip(np.round(24 + 3.5 * rng.standard_normal(n)), 16, 36).astype(int)
    placebo, effect = np.array([-1.5, -3.0, -4.5, -6.0, -7.0]), np.array([-0.5, -1.0, -1.5, -2.0, -2.5])
    sd = np.array([3.5, 4.5, 5.5, 6.2, 6.8])
    correlation = 0.9 * np.exp(-np.abs(weeks[:, None] - weeks) / 12) + 0.1 * np.eye(5)
    errors = rng.standard_normal((n, 5)) @ np.linalg.cholesky(sd[:, None] * correlation * sd).T
    change = placebo + drug[:, None] * effect - 0.3 * (baseline[:, None] - 24) + errors
    # A Hamilton score is a whole number that is not negative.
    score = np.maximum(np.round(baseline[:, None] + change), 0).astype(int)

    # Patients leave after a visit, more likely with a high score at that visit; a few visits are missed.
    leaves = rng.random((n, 4)) < 1 / (1 + np.exp(4.6 - 0.1 * score[:, :4]))
    there = np.column_stack([np.ones(n, dtype=bool), ~np.cumsum(leaves, axis=1).astype(bool)])
    there[:, 1:4] &= rng.random((n, 3)) > 0.03
    patient, visit = np.nonzero(there)
    return pd.DataFrame(
        {
            "patient": [f"{i + 1:03d}" for i in patient],
            "arm": np.array(["placebo", "drug"])[drug[patient]],
            "visit": [f"W{week}" for week in weeks[visit]],
            "week": weeks[visit].astype(str),
            "baseline": baseline[patient].astype(str),
            "change": (score[there] - baseline[patient]).astype(str),
        }
    )


def datasets() -> dict[str, pd.DataFrame]:
    """Every bundled set, as text."""
    return {
        "hsb82": hsb82(),
        "exam": exam(),
        "sleepstudy": read("sleepstudy.csv")[["Reaction", "Days", "Subject"]],
        "egsingle": egsingle(),
        "pig": read("pig.csv"),
        "mini_wright": mini_wright(),
        "dyestuff": read("Dyestuff.csv"),
        "dyestuff2": read("Dyestuff2.csv"),
        "pastes": read("Pastes.csv"),
        "penicillin": read("Penicillin.csv"),
        "machines": read("Machines.csv"),
        "oats": read("Oats.csv")[["Block", "Variety", "nitro", "yield"]],
        "orthodont": read("Orthodont.csv")[["distance", "age", "Subject", "Sex"]],
        "ovary": read("Ovary.csv").rename(columns={"occ": "occasion"})[
            ["Mare", "occasion", "Time", "follicles"]
        ],
        "classrooms": classrooms(),
        "depression": depression(),
    }


def packed(data: pd.DataFrame) -> bytes:
    """Return the frame as gzipped CSV without a time stamp."""
    text = data.to_csv(index=False, lineterminator="\n")
    return gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)


def main() -> None:
    """Write the files and say how large they are."""
    parser = argparse.ArgumentParser(description="Write the bundled data files of jaxmixed.")
    parser.add_argument(
        "--target", type=Path, default=TARGET, help="folder to write to (default: the package's)"
    )
    target = parser.parse_args().target
    target.mkdir(parents=True, exist_ok=True)
    for name, data in datasets().items():
        content = packed(data)
        (target / f"{name}.csv.gz").write_bytes(content)
        print(f"{name:<12} {len(data):>6} rows {len(content):>8} bytes")


if __name__ == "__main__":
    main()
