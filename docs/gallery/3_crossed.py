"""
Crossed groups: plates and samples
==================================

Six samples of penicillin were tried on each of 24 plates, and the diameter of the
zone in which bacteria do not grow was measured. A measurement shares its plate
with five others and its sample with 23: neither grouping is nested in the other.
Each gets a term, and which factors are crossed is found from the data.
"""

import numpy as np

import jaxmixed as jm

plates = jm.datasets.load("penicillin")
fit = jm.mixed("diameter ~ 1 + (1 | plate) + (1 | sample)", plates)
fit.varcorr[["group", "estimate", "std_error", "sd_or_corr"]]

# %%
# Where does the variance come from? Samples differ most; the measurement itself
# is precise.

fit.icc(kind="share").round(3)

# %%
# Each grouping has its predicted effects (BLUPs), with standard errors that know
# of the other grouping.

fit.plot.caterpillar("sample")

# %%
fit.plot.caterpillar("plate")

# %%
# All six samples have the same standard error, 0.20, since the design is
# balanced: every sample was tried on every plate.

fit.ranef_se()["sample"].round(3)

# %%
# Are both terms needed? A variance cannot be negative, so that the likelihood
# ratio of one variance has a mixture of two distributions.

without_plates = jm.mixed("diameter ~ 1 + (1 | sample)", plates)
jm.lrtest(without_plates, fit)

# %%
# What would a measurement be on a new plate? The samples are known and the plate
# is not, so that its variance counts.

new = {"sample": ["A", "F"], "plate": ["new", "new"]}
fit.predictions(new, allow_new_levels=True, interval="prediction").round(2)

# %%
# Samples are compared by differences, whose standard errors come from the joint
# covariance of the predictions: what all samples have in common, the mean,
# cancels.

fit.compare_levels("sample", "A", "F").round(3)

# %%
# Partially crossed
# -----------------
#
# Designs need not be balanced. Here 800 pupils went from 40 primary to 12
# secondary schools, most to one nearby: some pairs of schools share many pupils,
# some none. The scores are simulated, with standard deviations of 4 between
# primary schools, 3 between secondary schools and 8 between pupils of the same
# schools.

rng = np.random.default_rng(4)
primary = np.repeat(np.arange(40), 20)
secondary = np.where(
    rng.random(800) < 0.7, primary * 12 // 40, rng.integers(0, 12, 800)
)
pupils = {"primary": primary, "secondary": secondary}
pupils["score"] = (
    50
    + rng.normal(0, 4, 40)[primary]
    + rng.normal(0, 3, 12)[secondary]
    + rng.normal(0, 8, 800)
)
both = jm.mixed("score ~ 1 + (1 | primary) + (1 | secondary)", pupils)
columns = ["group", "sd_or_corr", "sd_or_corr_conf_low", "sd_or_corr_conf_high"]
both.variance_table()[columns].round(2)

# %%
# Profile likelihoods give intervals that need not be symmetric on any scale:

both.conf_int(method="profile").round(2)

# %%
# A model without the primary schools puts part of what they do on the secondary
# schools, and the rest on the pupils:

alone = jm.mixed("score ~ 1 + (1 | secondary)", pupils)
alone.variance_table()[columns].round(2)
