"""
For users of Stata: after ``mixed``
===================================

The commands that follow ``mixed`` in a do-file, side by side with what they are
here. The weights of 48 pigs over nine weeks are Stata's own example.

.. code-block:: stata

    webuse pig
    mixed weight week || id: week, covariance(unstructured)

Stata fits by maximum likelihood unless it is told otherwise; here restricted
maximum likelihood is the default.
"""

import jax.numpy as jnp
import pandas as pd

import jaxmixed as jm

pigs = jm.datasets.load("pig")
fit = jm.mixed("weight ~ week + (week | id)", pigs, method="ml")
fit.summary()

# %%
# Predictions
# -----------
#
# ``predict xb, xb`` and ``predict se, stdp``: of the fixed part.

fit.predictions(random=False)[["estimate", "std_error"]].head(3).round(4)

# %%
# ``predict f, fitted``: with the predicted random effects. Here it has a standard
# error and an interval.

fit.predictions().head(3).round(4)

# %%
# ``predict b*, reffects`` and ``reses(s*)``: one row for each group instead of
# one for each observation. ``ranef_se(beta="estimated")`` adds the uncertainty of
# the fixed effects.

fit.ranef()["id"].head(3).round(4)

# %%
fit.ranef_se()["id"].head(3).round(4)

# %%
# ``predict r, residuals`` and ``predict rs, rstandard``:

pd.DataFrame(
    {"residuals": fit.residuals(), "rstandard": fit.residuals("standardized")}
).head(3).round(4)

# %%
# All of them beside the data, to go on with in another program, is ``augment``:

fit.augment().head(3).round(3)

# %%
# ``estat``
# ---------
#
# ``estat recovariance``, and as correlations with ``, correlation``:

fit.random_terms[0].cov.round(4)

# %%
fit.random_terms[0].corr.round(4)

# %%
# ``estat icc``: with a random slope it depends on the covariate, as Stata's note
# says. Here at the first and at the last week:

fit.icc(at={"week": [1, 9]}).round(3)

# %%
# ``estat group`` and ``estat ic``:

fit.group_sizes()

# %%
fit.glance().T.rename(columns={0: "fit"})

# %%
# Tests
# -----
#
# ``estimates store``, ``lrtest``: the fits are objects, kept under names of their
# own.

intercepts = jm.mixed("weight ~ week + (1 | id)", pigs, method="ml")
jm.lrtest(intercepts, fit)

# %%
# ``test week = 6``, ``lincom _cons + 9*week``, ``nlcom``:

fit.test("week = 6")

# %%
fit.lincom("(Intercept) + 9*week").round(3)

# %%
# The standard deviation of weights between pigs in week 9, a function of the
# variances, with an interval on the log scale:

z = jnp.array([1.0, 9.0])
fit.nlcom(
    lambda p: jnp.sqrt(z @ p.cov("id") @ z), scale="log", names=["sd in week 9"]
).round(3)

# %%
# ``margins, at(week=(1(4)9))``:

fit.emmeans("week", at={"week": [1, 5, 9]}, ddf="none")

# %%
# What has no command there
# -------------------------
#
# Ranks of the groups with their uncertainty, the plots of the random effects, and
# what each group does to the estimates:

fit.ranks("id", "week").head(3).round(2)

# %%
fit.plot.caterpillar("id", "week")
