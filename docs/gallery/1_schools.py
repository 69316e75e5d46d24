"""
Pupils in schools: a whole analysis
===================================

Scores in mathematics of 7,185 pupils in 160 American schools, the data that
multilevel models are taught with (Raudenbush and Bryk 2002, *Hierarchical Linear
Models*, chapter 4). The questions: how much do schools differ, does
socio-economic status matter within schools and between them, does its effect
vary, do Catholic schools do better and for whom, which schools stand out, and can
the model be trusted?
"""

import tempfile
from pathlib import Path

import pandas as pd

import jaxmixed as jm

schools = jm.datasets.load("hsb82")
schools[["school", "mathach", "ses", "cses", "meanses", "sector"]].head(3)

# %%
# How much do schools differ?
# ---------------------------
#
# A model with nothing but an intercept that varies between schools splits the
# variance into a part between schools and a part within them. The intraclass
# correlation is the share between: 18%.

null = jm.mixed("mathach ~ 1 + (1 | school)", schools)
null.summary()

# %%
null.icc().round(3)

# %%
# How well would the mean score of a school's pupils tell it from the others? The
# reliability of that mean is above 0.9 for a school of 50 pupils, and less for a
# smaller one.

null.reliability()["school"].describe().round(3)

# %%
# Socio-economic status within and between schools
# ------------------------------------------------
#
# ``cses`` is a pupil's status less the mean of the school, ``meanses`` that mean.
# A pupil whose family is a unit better off than the school's average is 2.2
# points ahead; a school whose average is a unit higher is 5.9 points ahead.

context = jm.mixed("mathach ~ cses + meanses + (1 | school)", schools)
context.coef_table(ddf="satterthwaite").round(3)

# %%
# The difference is the contextual effect: what a well-off school adds to two
# pupils with the same family.

context.lincom("meanses - cses", ddf="satterthwaite").round(3)

# %%
# Does the effect of status vary between schools?
# -----------------------------------------------
#
# A random slope adds its variance and its covariance with the intercept. A
# variance is at the end of its range where there is none: the mixture of two
# chi-squared distributions takes that into account.

slopes = jm.mixed("mathach ~ cses + meanses + (cses | school)", schools)
jm.lrtest(context, slopes, mixture=True)

# %%
# Why does it vary? Sector, and cross-level interactions
# ------------------------------------------------------
#
# Characteristics of schools may explain their intercepts and their slopes.
# Products of ``cses`` with them say for whom a school does well: in Catholic
# schools the slope is 1.6 points flatter, that is, the disadvantage of a poor
# family is smaller there.

fit = jm.mixed("mathach ~ (meanses + sector) * cses + (cses | school)", schools)
fit.summary(ddf="satterthwaite")

# %%
# Sector and mean status explain almost all of the variance of the slopes, and
# what is left cannot be told from zero:

parallel = jm.mixed("mathach ~ (meanses + sector) * cses + (1 | school)", schools)
jm.lrtest(parallel, fit, mixture=True)

# %%
# Methods for the degrees of freedom hardly differ with 160 schools. With ten,
# they would (see :doc:`/docs/inference`).

ddf = ["none", "satterthwaite", "kenward-roger"]
pd.concat({name: fit.coef_table(ddf=name)["df"] for name in ddf}, axis=1).round(1)

# %%
# What the fixed part predicts: a flatter line in Catholic schools.

fit.plot.margins("cses", by="sector")

# %%
# Can the model be trusted?
# -------------------------
#
# The panel of residuals: the mean is right along the fitted values, but the
# spread is not constant. The score has a ceiling, which nobody can exceed, and
# residuals have lighter tails than the normal distribution.

fit.plot.diagnostics(simulations=100)

# %%
# Was the best optimum found? The certificate says what was checked: the gradient,
# the curvature, the direction about which the data say least.

fit.certificate(starts=4)

# %%
# Which schools stand out?
# ------------------------
#
# Predicted effects of the schools in order, with their intervals, beyond what
# status and sector explain.

fit.plot.caterpillar("school")

# %%
# A league table is less certain than it looks. The expected rank of each school
# and the probability to be among the best tenth come from the joint distribution
# of all predictions: only a few schools are there with some certainty, and most
# intervals reach over half of the table.

fit.ranks("school").head(8).round(2)

# %%
fit.plot.ranks("school")

# %%
# Two schools are compared by their difference, with its own standard error:
# intervals that overlap may differ.

best, second = fit.ranks("school").index[:2]
fit.compare_levels("school", best, second).round(2)

# %%
# What hangs on single schools?
# -----------------------------
#
# ``influence`` leaves out each school and says what changes (:doc:`5_influence`
# has more).

influence = fit.influence("school")
influence

# %%
# For the file
# ------------
#
# The report is one HTML page with the model in words and formulas, all tables,
# the warnings and the diagnostic panel, to be sent or printed.

with tempfile.TemporaryDirectory() as folder:
    page = fit.report(Path(folder) / "schools.html")
    print(f"{page.name}: {page.stat().st_size / 1000:.0f} kB")
