# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # 08 · A search in five minutes
#
# **Question:** How does a search find a distiller, and how do I start one?
#
# A formula of DetKDS takes the same maps of student and teacher through three transformations and compares them by a distance. There are
# thousands, and a trial trains a student for each. This notebook trains nothing: all 305 different formulas of a grid were trained twice
# beforehand, for 150 steps on one pair, so that a search of 60 trials can be repeated fifty times in seconds.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

# %%
table = wb.fitness_table()
formulas = table.frame()
formulas.head(8).round(2)

# %% [markdown]
# `ap` is the mean AP of two seeds on images held out of training. Without distillation the student has:

# %%
[round(100 * ap, 2) for ap in table.undistilled]

# %% [markdown]
# The order of the best is not certain. Seeds of one formula spread by (standard deviation, over all formulas):

# %%
differences = [first - second for first, second in table.ap.values()]
round(100 * (sum(value**2 for value in differences) / len(differences) / 2) ** 0.5, 2)

# %% [markdown]
# ## Which sampler finds good formulas soonest?
#
# Each sampler proposes 60 formulas, is told the AP of each from the table, and may use it for the next. Lines are the best AP so far, the
# median over sampler seeds; bands are its 95 % interval. `official` is what the released scripts do, and `family` the loop of the authors'
# earlier searches.

# %%
SAMPLERS = ["random", "official", "family", "recommended", "tpe"]
curves = table.race(SAMPLERS, trials=60, seeds=50)
wb.figures.sampler_curves(curves)

# %%
last = curves[curves["trial"] == curves["trial"].max()]
last.set_index("sampler").round(2)

# %% [markdown]
# A search may begin with formulas that are known to work, such as the released ones and those of methods made by hand (`seeded`).

# %%
seeded = table.race(["random", "recommended", "tpe"], trials=60, seeds=50, seeded=True)
wb.figures.sampler_curves(seeded)

# %% [markdown]
# ## What survives?
#
# One search, choice by choice: how common each is among the best 20 % of the trials as the search goes on. What the search keeps grows
# strong, and what does not survive fades.

# %%
trials = table.search("recommended", trials=120)
wb.figures.survivors(wb.survivors(trials))

# %% [markdown]
# One search is one draw: another seed may keep other choices. The best formula that it found, as an equation:

# %%
from IPython.display import Math

from workbench.methods.detkds.genotype import Genotype
from workbench.search.equation import equation

best = max(trials, key=lambda trial: trial.value)
Math(equation(Genotype("global", **best.genes), "corrected"))

# %% [markdown]
# Here a formula has one AP. In a real search each trial has one seed, and the best of many trials tends to be a lucky one. A real search
# therefore trains its best five again with fresh seeds, and reports their mean with an interval.
#
# ## A search of your own
#
# A plan names the pair (a recipe), the inputs to search and the length of a trial:

# %%
from workbench.search.plan import plan_path

print(plan_path("shapes_fcos").read_text())

# %% [markdown]
# ```
# workbench search shapes_fcos --workers 2          # begins it, or continues it
# workbench app                                     # the page Search shows it while it runs
# workbench search export shapes_fcos --top 3       # writes the best as recipes
# workbench run found/RECIPE                        # trains one of them on the whole schedule
# ```
#
# The manual says what each stage does, what is refused before it costs anything, and which formulas to try first (*Search*).
