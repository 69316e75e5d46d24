"""
How large a study? Power by simulation
======================================

A programme is to be tried in schools, half of them chosen at random. A survey
tells how much pupils and schools differ; a simulation tells how often a trial of
a given size would find an effect of 1.5 points.
"""

import jaxmixed as jm

schools = jm.datasets.load("hsb82")
pilot = jm.mixed("mathach ~ ses + (1 | school)", schools)
pilot.varcorr[["group", "estimate", "sd_or_corr"]]

# %%
# The study: 40 schools of 25 pupils, treated in turn, with the socio-economic
# status of the survey's pupils.

trial = jm.study(
    {"school": 40},
    size=25,
    between={"treatment": [0, 1]},
    within={"ses": ("sample", schools["ses"])},
    seed=1,
)
trial.head(3)

# %%
# Power at other numbers of schools: 400 trials are drawn for each, fitted and
# tested.

curve = jm.power(
    "mathach ~ treatment + ses + (1 | school)",
    trial,
    fit=pilot,
    effects={"treatment": 1.5},
    test="treatment",
    vary={"groups": {"school": [20, 40, 60, 80, 100, 120]}},
    n=400,
    seed=1,
)
curve.table[["school", "rows", "power", "conf_low", "conf_high"]].round(3)

# %%
curve.plot()

# %%
# The number of schools for a power of 80%, with limits that say how precise the
# simulation is:

curve.needed(power=0.8).round(1)

# %%
# More schools or more pupils?
# ----------------------------
#
# Where schools differ, more pupils in the same schools help little. The same
# number of pupils, 1,600, in 80 schools of 20 or in 40 schools of 40:

for count, size in [(80, 20), (40, 40)]:
    shape = jm.study(
        {"school": count},
        size=size,
        between={"treatment": [0, 1]},
        within={"ses": ("sample", schools["ses"])},
        seed=1,
    )
    power = jm.power(
        "mathach ~ treatment + ses + (1 | school)",
        shape,
        fit=pilot,
        effects={"treatment": 1.5},
        test="treatment",
        n=400,
        seed=1,
    )
    found = power.table["power"].iloc[0]
    print(f"{count} schools of {size} pupils: power {found:.2f}")
