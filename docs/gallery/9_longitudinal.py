"""
A clinical trial with repeated measurements
===========================================

Two hundred patients, a drug or a placebo, five visits in eight weeks (simulated
data). Three in ten leave before the end. The visits of a patient are correlated,
and the later ones vary more: the mixed model for repeated measurements (MMRM)
leaves their covariance free and uses every visit that took place.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import jaxmixed as jm

trial = jm.datasets.load("depression")
visits = trial.groupby(["arm", "visit"], observed=True).size()
visits.unstack("visit")

# %%
# The model
# ---------
#
# A mean for each arm and visit, adjusted for the score at the start, and an
# unstructured covariance of the residuals of a patient:

formula = "change ~ baseline*visit + arm*visit"
fit = jm.mixed(formula, trial, residuals="us(visit | patient)")
fit.summary(ddf="kenward-roger")

# %%
# The effect of the drug
# ----------------------
#
# Means of the arms at each visit, for an average score at the start:

means = fit.emmeans("arm", by="visit", ddf="kenward-roger")
weeks = np.array([1, 2, 4, 6, 8])
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for arm, colour, shift in zip(
    means.table["arm"][:2], ["#7f9bb5", "#d1603d"], [-0.06, 0.06], strict=True
):
    own = means.table[means.table["arm"] == arm]
    axes.errorbar(
        weeks + shift,
        own["estimate"],
        [own["estimate"] - own["conf_low"], own["conf_high"] - own["estimate"]],
        color=colour,
        marker="o",
        capsize=3,
        label=arm,
    )
axes.set(xlabel="Week", ylabel="Change of the score", xticks=weeks)
axes.legend(frameon=False)

# %%
# Differences between drug and placebo. The last one is what the trial was made for.

effects = means.contrast("trt.vs.ctrl", adjust="none")
effects

# %%
# What the visits have in common
# ------------------------------
#
# Standard deviations grow from visit to visit, and correlations fall with the time
# between visits:

implied = fit.wcorrelation("001")
implied

# %%
# Correlations against the weeks between two visits, with the curve of a structure
# that knows the time: exponential, with a share of independent error. It needs two
# parameters for what took ten.

curve = jm.mixed(
    formula, trial, residuals="exp(week | patient, nugget, variance_by=visit)"
)
apart = np.abs(weeks[:, None] - weeks)[np.triu_indices(5, 1)]
free = implied.correlation.to_numpy()[np.triu_indices(5, 1)]
far = np.linspace(0.1, 7.5)
parameters = curve.residual_parameters
smooth = (1 - parameters["nugget"]) * np.exp(-far / parameters["range"])
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(apart, free, "o", color="#1f4e79", label="unstructured")
axes.plot(far, smooth, color="#d1603d", label="exponential with nugget")
axes.set(xlabel="Weeks between visits", ylabel="Correlation", ylim=(0, 1))
axes.legend(frameon=False)

# %%
# Does the structure matter?
# --------------------------
#
# The effect at week 8 by four structures. A random intercept says that all visits
# vary alike and are equally correlated: its standard error is too small. With a
# cluster-robust covariance it is what the others say.

alike = jm.mixed(formula + " + (1 | patient)", trial)
at_end = "armdrug + visitW8:armdrug"
rows = {
    "unstructured": fit.lincom(at_end, ddf="kenward-roger"),
    "exponential": curve.lincom(at_end, ddf="kenward-roger"),
    "random intercept": alike.lincom(at_end, ddf="kenward-roger"),
    "the same, robust": alike.lincom(at_end, vcov=alike.robust("CR2")),
}
comparison = pd.concat({name: row.iloc[0] for name, row in rows.items()}, axis=1).T
comparison[["estimate", "std_error", "df", "p_value"]].astype(float).round(3)

# %%
# More structures, random effects beside them, forecasts and structures of one's own
# are on the page :doc:`/docs/longitudinal`.
