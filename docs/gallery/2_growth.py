"""
Growth: repeated measurements
=============================

Eighteen people slept three hours a night for ten days, and their reaction times
were measured each day (Belenky et al. 2003). Nearly everybody gets slower, at a
pace of their own: intercept and slope vary between people.
"""

import matplotlib.pyplot as plt
import numpy as np

import jaxmixed as jm

sleep = jm.datasets.load("sleepstudy")
fit = jm.mixed("Reaction ~ Days + (Days | Subject)", sleep)
fit.summary(scale="sd", ddf="kenward-roger")

# %%
# Everybody's line
# ----------------
#
# A panel for each person: the measurements, the population's line, and the
# person's own prediction.

fit.plot.trajectories("Days")

# %%
# The coefficients of a person are the fixed effects plus the predicted random
# effects.

fit.coef()["Subject"].head(3).round(2)

# %%
# Shrinkage
# ---------
#
# A line fitted to one person's ten measurements alone would be too extreme. The
# prediction is drawn towards the population, the more so the less a person's data
# say. The arrows go from each person's own estimate to the prediction.

fit.plot.shrinkage("Subject")

# %%
# How far is said by the reliability, the factor by which an effect is shrunken:

fit.reliability()["Subject"].iloc[:1].round(2)

# %%
# Predictions for known people and for new ones
# ---------------------------------------------
#
# Two days on, for a person in the data and for one who is not. The interval of
# the mean holds the line of that person; for a new person it knows that the line
# is not known, and is much wider.

later = {"Days": [11, 11], "Subject": ["308", "somebody new"]}
fit.predictions(later, allow_new_levels=True).round(1)

# %%
# The prediction interval is for a new measurement, which has its own error, too:

fit.predictions(later, allow_new_levels=True, interval="prediction").round(1)

# %%
# Three bands along the days: of the population's mean, of the measurements of
# person 308, and of those of a new person.

days = np.linspace(0, 11, 23)
bands = {
    "a new person": fit.predictions(
        {"Days": days, "Subject": ["new"] * 23},
        allow_new_levels=True,
        interval="prediction",
    ),
    "person 308": fit.predictions(
        {"Days": days, "Subject": ["308"] * 23}, interval="prediction"
    ),
    "population mean": fit.predictions(
        {"Days": days}, random=False, ddf="kenward-roger"
    ),
}
figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
colours = ["#7f9bb5", "#d1603d", "#1f4e79"]
for colour, (name, band) in zip(colours, bands.items(), strict=True):
    axes.fill_between(
        days, band["conf_low"], band["conf_high"], color=colour, alpha=0.25
    )
    axes.plot(days, band["estimate"], color=colour, label=name)
one = sleep[sleep["Subject"] == "308"]
axes.plot(one["Days"], one["Reaction"], "o", color=colours[1], markersize=4)
axes.set(xlabel="Days", ylabel="Reaction time (ms)")
axes.legend(frameon=False, loc="upper left")

# %%
# Are the errors independent?
# ---------------------------
#
# The model says that what is left after a person's line is independent from day
# to day. Weights of 48 pigs over nine weeks are a case where it is not: residuals
# of neighbouring weeks resemble each other far more than the model allows.

pigs = jm.datasets.load("pig")
growth = jm.mixed("weight ~ week + (week | id)", pigs)
growth.plot.spaghetti("week")

# %%
growth.plot.autocorrelation(time="week", simulations=200)
