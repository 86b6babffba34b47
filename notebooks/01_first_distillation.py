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
# **Question:** does a teacher help a small detector, and can that be seen within a minute?
#
# The workbench ships a small trained detector, the *teacher*, and data that it draws itself: shapes on textured ground. Two *students* of a
# quarter of its size are trained for 300 steps, one alone and one taught by the teacher. Nothing else differs: the seed, the order of the
# images and their augmentations are the same.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

# %% [markdown]
# A *recipe* says what is trained; its *arms* are named changes to it. `wb.train` trains one arm and returns the *run*, the folder that
# keeps everything about it. A run that is there already is opened instead of made again, so this notebook is fast the second time.

# %%
minute = ["train.steps=300", "train.evaluate_every=60", "train.checkpoint_every=300", "data.options.val=100", "data.options.test=100"]
alone = wb.train("shapes", arm="undistilled", name="first-alone", overrides=[*minute, *SHORTER])

# %%
taught = wb.train("shapes", name="first-taught", overrides=[*minute, *SHORTER])

# %% [markdown]
# ## Does it help?
# AP over training, and beside it how restless the matching is: *churn* is the share of the objects that another query serves than at the
# evaluation before.

# %%
wb.figures.progress(alone, taught)

# %% [markdown]
# The taught student is ahead at equal steps from early on. Its steps cost more, because the teacher looks at every image too; notebook 04
# comes back to that. A single seed is an anecdote, so the verdict says what it is about:

# %%
print(wb.compare({0: alone}, {0: taught}).sentence())

# %% [markdown]
# ## What does it look like?
# One validation image: targets dotted, boxes of both models, and lines between *mates*, the pairs of teacher and student queries that the
# same assignment ties together. Every kind of mark can be switched off in the legend. After so few steps the student is sure of nothing
# yet, so boxes are drawn from a score of 0.15 on.

# %%
wb.figures.image(taught, number=3, score=0.15)

# %% [markdown]
# ## What did it cost?

# %%
wb.summary(alone, taught)[["ap", "ap50", "steps", "compute_seconds", "parameters"]]

# %% [markdown]
# **What it means.** A student that is told where the teacher looks learns faster. Whether it also ends higher, and which part of the
# teaching did it, are the questions of the next notebooks. 300 steps are far too few for numbers to be quoted: `docs/results.md` has those.
