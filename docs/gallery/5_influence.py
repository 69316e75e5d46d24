"""
What does the result hang on? Influence and deletion
====================================================

Would the conclusions be the same without some school, or without some
measurement? The estimates are compared with those without each case: by true
deletion, that is, a fit to the other rows, and by derivatives, which take one
pass for all cases and tell how the estimates begin to change when a case is given
a little less weight.
"""

import pandas as pd

import jaxmixed as jm

sleep = jm.datasets.load("sleepstudy")
fit = jm.mixed("Reaction ~ Days + (Days | Subject)", sleep)

# %%
# People
# ------
#
# Each of the 18 people is left out in turn. Cook's distance sums up how far the
# coefficients move.

people = fit.influence("Subject")
people

# %%
# Nobody is beyond the usual limit. Person 335 is the one whose reactions did not
# get slower: without, the average slope rises by half a standard error.

people.dfbetas.loc[["335", "308", "309"]].round(2)

# %%
people.plot()

# %%
# Coefficients are one thing, variances another: without 335 the variance of the
# slopes falls by 27%.

people.rvc.loc[["335", "308", "309"]].round(2)

# %%
# The fits without each person are there as a table of models, with all that
# ``fit_many`` offers.

people.refits.params.loc[["335", "308"]].round(3)

# %%
# Single measurements
# -------------------
#
# The same for all 180 rows. Where the first-order approximation and the true
# deletion disagree materially, a column says so.

rows = fit.influence("rows")
rows

# %%
# The row that matters most is the last day of person 332, 3.8 standard deviations
# below the line. The largest residual, row 56 of the same person, moves the line
# less, since it is nearer to the middle of the days; but the residual variance
# hangs on it.

worst = rows.cooks_distance.idxmax()
sleep.loc[[worst]].assign(
    standardized=fit.residuals("standardized")[worst].round(2)
)

# %%
fit.plot.residuals()

# %%
# Is the conclusion another one without it? Compare the two fits.

without = jm.mixed("Reaction ~ Days + (Days | Subject)", sleep.drop(index=worst))
columns = ["estimate", "std_error", "conf_low", "conf_high"]
fits = {"all rows": fit, "without it": without}
pd.concat(
    {name: each.lincom("Days")[columns] for name, each in fits.items()}
).round(2)

# %%
# Large data
# ----------
#
# 7,185 pupils: all rows by derivatives take less time than one fit by most
# programs. The rows with the largest distances can then be left out truly.

schools = jm.datasets.load("hsb82")
large = jm.mixed("mathach ~ ses + (1 | school)", schools)
pupils = large.influence("rows", method="approximate")
pupils.cooks_distance.nlargest(3)

# %%
large.influence("school").plot()
