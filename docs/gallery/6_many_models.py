"""
Thousands of models at once
===========================

Expression of genes, voxels of an image, items of a questionnaire: the same
design, and a response for each of thousands of variables. After one pass over the
design a further response costs a few small matrices.

Here 24 people were measured before a treatment, and two and four weeks later. Of
2,000 simulated variables, the last 200 respond to the treatment.
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxmixed as jm

rng = np.random.default_rng(7)
people, variables, responding = 24, 2000, 200
person = np.repeat(np.arange(people), 3)
week = np.tile([0.0, 2.0, 4.0], people)
treated = (person % 2).astype(float)
design = {"person": person, "week": week, "treated": treated}

effect = np.zeros(variables)
effect[-responding:] = 0.5
Y = rng.normal(size=(people, variables))[person] + rng.normal(
    size=(3 * people, variables)
)
Y += (week * treated)[:, None] * effect

fits = jm.fit_many(
    "~ week * treated + (1 | person)", design, Y, ddf="satterthwaite"
)
print(fits.summary())

# %%
# False discovery rate
# --------------------
#
# ``tidy()`` has a row for each coefficient of each model, with p-values adjusted
# for the number of models: by default so that among those that are called
# significant, a share is expected to be false that is no larger than the level.

table = fits.tidy()
slopes = table[table["term"] == "week:treated"].reset_index(drop=True)
found = slopes["p_adjusted"] < 0.05
true = np.arange(variables) >= variables - responding
print(f"found {found.sum()}, of which {(found & ~true).sum()} have no effect")
print(f"missed {(true & ~found).sum()}")

# %%
# P-values of the variables that do not respond are uniform, which says that the
# tests hold their level with 24 people. The others pile up near zero.

figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
p_values = slopes["p_value"].to_numpy()
axes.hist(
    [p_values[~true], p_values[true]],
    bins=40,
    stacked=True,
    color=["#9db4c8", "#1f4e79"],
    label=["no effect", "effect"],
)
axes.set(xlabel="p-value of week:treated", ylabel="variables")
axes.legend(frameon=False)

# %%
# Variances that are estimated as zero
# ------------------------------------
#
# A fit may find no variance between people at all. That is an answer, not a
# failure: such a fit has converged, and is counted as singular.

print(f"converged {fits.converged.sum()}, singular {fits.is_singular.sum()}")

# %%
# A model for each group of the data
# ----------------------------------
#
# ``by=`` fits the same formula to parts of the data, here to the public and the
# Catholic schools of a survey.

schools = jm.datasets.load("hsb82")
sectors = jm.fit_many("mathach ~ ses + (1 | school)", schools, by="sector")
sectors.params
