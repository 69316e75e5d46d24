"""What every bundled data set holds, where it comes from, and a model to try on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["id", "factor", "integer", "number"]

_KIND_WORDS: dict[Kind, str] = {
    "id": "identifier",
    "factor": "factor",
    "integer": "integer",
    "number": "number",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, how it is stored, what it means, and the levels of a factor."""

    name: str
    kind: Kind
    meaning: str
    levels: tuple[str, ...] = ()

    def __str__(self) -> str:
        levels = f" ({', '.join(self.levels)})" if self.levels else ""
        return f"{self.name:<16}{_KIND_WORDS[self.kind]:<12}{self.meaning}{levels}"


@dataclass(frozen=True, slots=True)
class Description:
    """Title, size, columns, source and licence of a bundled data set; prints as a page of text.

    `example` is a formula for the data, `residuals` the structure of residuals that goes with it, if any.
    """

    name: str
    title: str
    rows: int
    columns: tuple[Column, ...]
    source: str
    licence: str
    example: str
    residuals: str = ""

    def __str__(self) -> str:
        structure = f', residuals="{self.residuals}"' if self.residuals else ""
        lines = [f"{self.name}: {self.title}", f"{self.rows} rows, {len(self.columns)} columns", ""]
        lines += [f"  {column}" for column in self.columns]
        lines += [
            "",
            f"Source:  {self.source}",
            f"Licence: {self.licence}",
            f'Example: mixed("{self.example}", data{structure})',
        ]
        return "\n".join(lines)


_LME4 = "Published measurements; copied from the R package lme4 (GPL >= 2)."
_MLMREV = "Published measurements; copied from the R package mlmRev (GPL >= 2)."
_NLME = "Published measurements; copied from the R package nlme (GPL >= 2)."
_BANDS = ("bottom 25%", "mid 50%", "top 25%")
_VISITS = ("W1", "W2", "W4", "W6", "W8")
_DAVIES = "Davies & Goldsmith (1972), Statistical Methods in Research and Production"

_DESCRIPTIONS = (
    Description(
        "hsb82",
        "High School and Beyond: mathematics achievement of pupils in 160 schools",
        7185,
        (
            Column("school", "id", "school"),
            Column("mathach", "number", "mathematics achievement score"),
            Column("ses", "number", "socio-economic status of the pupil, standardised"),
            Column("sector", "factor", "sector of the school", ("Public", "Catholic")),
            Column("meanses", "number", "mean of ses over the school's pupils in these data"),
            Column("minority", "integer", "1 if the pupil belongs to an ethnic minority, else 0"),
            Column("female", "integer", "1 if the pupil is a girl, else 0"),
            Column("cses", "number", "ses minus meanses"),
        ),
        "1982 survey of the US National Center for Education Statistics; Raudenbush & Bryk (2002), "
        "Hierarchical Linear Models. mlmRev::Hsb82 with columns renamed and minority, female coded 0/1.",
        _MLMREV,
        "mathach ~ ses + (1 + ses | school)",
    ),
    Description(
        "exam",
        "Inner London: examination scores of pupils in 65 schools",
        4059,
        (
            Column("school", "id", "school"),
            Column("normexam", "number", "examination score at age 16, normal score"),
            Column("standLRT", "number", "London reading test at age 11, standardised"),
            Column("sex", "factor", "sex of the pupil", ("F", "M")),
            Column("schgend", "factor", "pupils that the school admits", ("mixed", "boys", "girls")),
            Column("schavg", "number", "school's mean of standLRT"),
            Column("vr", "factor", "band of the school's verbal reasoning", _BANDS),
            Column("intake", "factor", "band of the pupil's intake score", _BANDS),
            Column("type", "factor", "school for both sexes or one", ("Mxd", "Sngl")),
        ),
        "Goldstein, Rasbash et al. (1993), Oxford Review of Education 19:425-433. "
        "mlmRev::Exam without the pupil number.",
        _MLMREV,
        "normexam ~ standLRT + (1 + standLRT | school)",
    ),
    Description(
        "sleepstudy",
        "Reaction times of 18 subjects over ten days of sleep deprivation",
        180,
        (
            Column("Reaction", "number", "average reaction time, milliseconds"),
            Column("Days", "integer", "days of sleep deprivation, 0 to 9"),
            Column("Subject", "id", "subject"),
        ),
        "Belenky et al. (2003), Journal of Sleep Research 12:1-12. lme4::sleepstudy.",
        _LME4,
        "Reaction ~ Days + (1 + Days | Subject)",
    ),
    Description(
        "egsingle",
        "US Sustaining Effects Study: yearly mathematics scores of 1,721 children in 60 primary schools",
        7230,
        (
            Column("schoolid", "id", "school"),
            Column("childid", "id", "child, unique over schools"),
            Column("year", "number", "year of the study, centred: -2.5 to 2.5"),
            Column("grade", "integer", "grade, 0 to 5"),
            Column("math", "number", "mathematics achievement on an item-response scale"),
            Column("retained", "integer", "1 if the child repeated the grade, else 0"),
            Column("female", "integer", "1 for a girl, else 0"),
            Column("black", "integer", "1 if the child is African American, else 0"),
            Column("hispanic", "integer", "1 if the child is Hispanic, else 0"),
            Column("size", "integer", "number of pupils in the school"),
            Column("lowinc", "number", "per cent of pupils from families of low income"),
            Column("mobility", "number", "per cent of pupils who move during a school year"),
        ),
        "Raudenbush & Bryk (2002), Hierarchical Linear Models. mlmRev::egsingle with female coded 0/1.",
        _MLMREV,
        "math ~ year + (1 + year | schoolid/childid)",
    ),
    Description(
        "pig",
        "Weights of 48 pigs in nine successive weeks",
        432,
        (
            Column("id", "id", "pig"),
            Column("week", "integer", "week, 1 to 9"),
            Column("weight", "number", "weight, kilograms"),
        ),
        "Diggle, Heagerty, Liang & Zeger (2002), Analysis of Longitudinal Data.",
        "Published measurements, as in the R package SemiPar (GPL >= 2).",
        "weight ~ week + (1 + week | id)",
    ),
    Description(
        "mini_wright",
        "Peak expiratory flow of 17 subjects, measured twice with a Mini-Wright meter",
        34,
        (
            Column("id", "id", "subject"),
            Column("occasion", "integer", "occasion, 1 or 2"),
            Column("wm", "integer", "peak flow, litres per minute"),
        ),
        "Bland & Altman (1986), The Lancet 327:307-310.",
        "Published measurements.",
        "wm ~ 1 + (1 | id)",
    ),
    Description(
        "dyestuff",
        "Yield of dyestuff from six batches of an intermediate product",
        30,
        (
            Column("Batch", "id", "batch"),
            Column("Yield", "integer", "yield, grams of standard colour"),
        ),
        f"{_DAVIES}, table 6.3. lme4::Dyestuff.",
        _LME4,
        "Yield ~ 1 + (1 | Batch)",
    ),
    Description(
        "dyestuff2",
        "Simulated yields without variation between batches: the fit is singular",
        30,
        (
            Column("Batch", "id", "batch"),
            Column("Yield", "number", "simulated yield"),
        ),
        "Box & Tiao (1973), Bayesian Inference in Statistical Analysis, table 5.1.4. lme4::Dyestuff2.",
        _LME4,
        "Yield ~ 1 + (1 | Batch)",
    ),
    Description(
        "pastes",
        "Strength of a chemical paste: two assays from each of three casks in ten batches",
        60,
        (
            Column("strength", "number", "strength, per cent"),
            Column("batch", "id", "batch (delivery)"),
            Column("cask", "id", "cask within the batch: a, b, c in every batch"),
            Column("sample", "id", "batch:cask, unique over batches"),
        ),
        f"{_DAVIES}, table 6.5. lme4::Pastes.",
        _LME4,
        "strength ~ 1 + (1 | batch/cask)",
    ),
    Description(
        "penicillin",
        "Growth inhibition by six samples of penicillin on 24 plates (crossed factors)",
        144,
        (
            Column("diameter", "integer", "diameter of the zone of inhibition, millimetres"),
            Column("plate", "id", "assay plate"),
            Column("sample", "id", "penicillin sample"),
        ),
        f"{_DAVIES}, table 6.6. lme4::Penicillin.",
        _LME4,
        "diameter ~ 1 + (1 | plate) + (1 | sample)",
    ),
    Description(
        "machines",
        "Productivity of six workers on three machines, three times each",
        54,
        (
            Column("Worker", "id", "worker"),
            Column("Machine", "factor", "brand of machine", ("A", "B", "C")),
            Column("score", "number", "productivity score"),
        ),
        "Milliken & Johnson (1992), Analysis of Messy Data; Pinheiro & Bates (2000). nlme::Machines.",
        _NLME,
        "score ~ Machine + (0 + Machine | Worker)",
    ),
    Description(
        "oats",
        "Split-plot trial: yield of three varieties of oats under four levels of nitrogen",
        72,
        (
            Column("Block", "id", "block"),
            Column(
                "Variety", "factor", "variety of oats (whole plots)", ("Golden Rain", "Marvellous", "Victory")
            ),
            Column("nitro", "number", "nitrogen, hundredweight per acre (subplots)"),
            Column("yield", "integer", "yield of the subplot"),
        ),
        "Yates (1935), Journal of the Royal Statistical Society Suppl. 2:181-247. nlme::Oats.",
        _NLME,
        "yield ~ nitro + (1 | Block/Variety)",
    ),
    Description(
        "orthodont",
        "Growth of a facial distance in 27 children at ages 8, 10, 12 and 14",
        108,
        (
            Column("distance", "number", "pituitary to pterygomaxillary fissure, millimetres"),
            Column("age", "integer", "age, years"),
            Column("Subject", "id", "child"),
            Column("Sex", "factor", "sex of the child", ("Male", "Female")),
        ),
        "Potthoff & Roy (1964), Biometrika 51:313-326. nlme::Orthodont.",
        _NLME,
        "distance ~ age * Sex + (1 + age | Subject)",
    ),
    Description(
        "ovary",
        "Numbers of large ovarian follicles of 11 mares, counted daily over their cycle",
        308,
        (
            Column("Mare", "id", "mare"),
            Column("occasion", "integer", "number of the count, in order of time: 1, 2, ..."),
            Column("Time", "number", "time in the cycle: 0 and 1 are successive ovulations"),
            Column("follicles", "integer", "number of follicles larger than 10 mm in diameter"),
        ),
        "Pierson & Ginther (1987), Animal Reproduction Science 14:219-231; Pinheiro & Bates (2000), "
        "Mixed-Effects Models in S and S-PLUS. nlme::Ovary with the number of the count.",
        _NLME,
        "follicles ~ Time + (1 | Mare)",
        "ar1(occasion | Mare)",
    ),
    Description(
        "classrooms",
        "Simulated three-level set: pupils in classrooms in schools",
        2580,
        (
            Column("school", "id", "school"),
            Column("classroom", "id", "classroom within the school: numbered anew in every school"),
            Column("test_score", "number", "test score of the pupil"),
            Column("ses", "number", "socio-economic status of the pupil, standardised"),
            Column("parental_educ", "integer", "years of the parents' education"),
            Column("teacher_exp", "integer", "years of experience of the classroom's teacher"),
        ),
        "Simulated by benchmarks/make_datasets.py with seed 20240229; describes no real pupils. True values: "
        "intercept 40, ses 3, parental_educ 0.8, teacher_exp 0.15; standard deviations: school intercept 4, "
        "school slope of ses 1 (correlation 0.3), classroom 2.5, residual 8.",
        "As jaxmixed itself.",
        "test_score ~ ses + parental_educ + teacher_exp + (1 + ses | school) + (1 | school:classroom)",
    ),
    Description(
        "depression",
        "Simulated trial: change of a depression score of 200 patients at five visits, with dropouts",
        816,
        (
            Column("patient", "id", "patient"),
            Column("arm", "factor", "treatment, allocated at random", ("placebo", "drug")),
            Column("visit", "factor", "visit; visits that did not take place are absent", _VISITS),
            Column("week", "integer", "weeks since the start: 1, 2, 4, 6, 8"),
            Column("baseline", "integer", "score on Hamilton's scale at the start"),
            Column("change", "integer", "score at the visit minus baseline"),
        ),
        "Simulated by benchmarks/make_datasets.py with seed 20240302; describes no real patients. True "
        "values by visit: mean change at baseline 24 with placebo -1.5, -3, -4.5, -6, -7; effect of the "
        "drug -0.5, -1, -1.5, -2, -2.5; slope of baseline -0.3; residual standard deviation 3.5, 4.5, "
        "5.5, 6.2, 6.8; correlation at d weeks' distance 0.9 exp(-d/12). A patient with score s at a "
        "visit leaves after it with probability 1/(1 + exp(4.6 - 0.1 s)); 3 in 100 visits between the "
        "first and the last are missed.",
        "As jaxmixed itself.",
        "change ~ baseline*visit + arm*visit",
        "us(visit | patient)",
    ),
)

CATALOGUE: dict[str, Description] = {entry.name: entry for entry in _DESCRIPTIONS}
