"""
An experiment with two treatments
=================================

Three varieties of oats were sown on the plots of six blocks, one variety on each
plot, and each plot was divided into four quarters that got different amounts of
nitrogen: a split-plot experiment. Varieties are compared between plots, nitrogen
within them, and a mixed model with a term for blocks and one for plots within
blocks knows which differences are the more precise.
"""

import jaxmixed as jm

oats = jm.datasets.load("oats")
oats["dose"] = oats["nitro"].astype(str)  # a factor: no straight line is assumed
fit = jm.mixed("yield ~ Variety * dose + (1 | Block/Variety)", oats)

# %%
# With six blocks, F tests need denominator degrees of freedom. Those of Kenward
# and Roger are exact in a balanced design like this one: 10 for what varies
# between plots, 45 for what varies within them.

fit.anova(ddf="kenward-roger").round(4)

# %%
# Nitrogen matters and does so alike for all varieties. Is the effect of nitrogen
# a straight line? The coefficients of orthogonal polynomials over the four
# equidistant doses say so:

doses = fit.emmeans("dose", ddf="kenward-roger")
doses.contrast("poly")

# %%
# Mean yield by dose, averaged over varieties, each with its 95% interval:

doses

# %%
# Every dose against none, with p-values and limits adjusted for the three
# comparisons by the multivariate t distribution, as Dunnett's test does:

doses.contrast("trt.vs.ctrl")

# %%
# All varieties against each other, adjusted by Tukey's method. None differs:
# between plots the experiment is not precise.

fit.emmeans("Variety", ddf="kenward-roger").pairs()

# %%
# The means of all twelve combinations, drawn:

fit.plot.margins("dose", by="Variety", ddf="kenward-roger")

# %%
# A treatment whose effect varies
# -------------------------------
#
# Six workers tried three machines, three times each. Workers differ, and they
# differ by machine: the variance of the random effects is of another size for
# each machine.

machines = jm.datasets.load("machines")
parallel = jm.mixed("score ~ Machine + (1 | Worker)", machines)
by_machine = jm.mixed("score ~ Machine + (0 + Machine | Worker)", machines)
print(jm.compare(parallel, by_machine))

# %%
# Differences between machines are the less certain for it: the interval of the
# larger model is the honest one.

parallel.emmeans("Machine").pairs(adjust="none")

# %%
by_machine.emmeans("Machine").pairs(adjust="none")
