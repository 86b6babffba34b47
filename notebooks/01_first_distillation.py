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
# # 01 · A first distillation in a minute
#
# **Question:** Does a teacher help a small detector, and can we see that within a minute?
#
# The workbench ships a small trained detector, the *teacher*, and draws its own data: shapes on a textured background. This notebook trains
# two *students*, a quarter of the teacher's size, for 300 steps: one alone, and one that also learns from the teacher. Everything else is
# the same: the seed, the order of the images and their augmentations.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

# %% [markdown]
# A *recipe* describes an experiment. Its *arms* are named variations of it. `wb.train` trains one arm and returns the *run*: the folder
# that holds everything about the training. If the run exists already, `wb.train` opens it instead, so this notebook is fast the second
# time.

# %%
minute = ["train.steps=300", "train.evaluate_every=60", "train.checkpoint_every=300", "data.options.val=100", "data.options.test=100"]
alone = wb.train("shapes", arm="undistilled", name="first-alone", overrides=minute)

# %%
taught = wb.train("shapes", name="first-taught", overrides=minute)

# %% [markdown]
# ## Does it help?
# The figure shows AP during training and, next to it, how stable the matching is. *Churn* is the share of objects that are matched to a
# different query than at the previous evaluation.

# %%
wb.figures.progress(alone, taught)

# %% [markdown]
# At equal steps, the distilled student is ahead from early on. Its steps cost more, because the teacher processes every image too; notebook
# 04 returns to that. One seed proves little, so the verdict says what it holds for:

# %%
print(wb.compare({0: alone}, {0: taught}).sentence())

# %% [markdown]
# ## What does it look like?
# This is one validation image with its targets (dotted) and the boxes of both models. Lines join *paired queries*: an assignment pairs each
# student query with one teacher query. Click an entry of the legend to hide that kind of mark. After so few steps the student's
# scores are low, so boxes are drawn from a score of 0.15.

# %%
wb.figures.image(taught, number=3, score=0.15)

# %% [markdown]
# ## What did it cost?

# %%
wb.summary(alone, taught)[["ap", "ap50", "steps", "compute_seconds", "parameters"]]

# %% [markdown]
# **What it means.** A student that learns where the teacher looks learns faster. The next notebooks ask whether it also ends with a higher
# AP, and which part of the distillation causes that. Do not quote numbers from 300 steps; `docs/results.md` has numbers from full
# schedules.
