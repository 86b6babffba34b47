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
# # 03 · When matching settles
#
# **Question:** At every step, a DETR decides again which query is matched to which object. Does the matching of a distilled student settle
# sooner?
#
# *Churn* answers this: of the objects matched at two points, it is the share whose query changed. The two points are evaluations of one run
# or decoder layers of one evaluation. All evaluations use images without augmentation.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

SEEDS = range(3)
alone = [wb.train("shapes", arm="undistilled", seed=seed) for seed in SEEDS]
taught = [wb.train("shapes", arm="features", seed=seed) for seed in SEEDS]

# %% [markdown]
# ## Over training, and over seeds
# Each line is the mean over seeds, and its band reaches from the lowest to the highest seed. Query 5 of one seed has nothing in common with
# query 5 of another, so the figure compares only the numbers.

# %%
wb.figures.seeds(*alone, *taught)

# %% [markdown]
# ## Between the layers of the decoder
# Each decoder layer refines the boxes of the layer before. How many objects change their query from one layer to the next, in the student
# and in its teacher?

# %%
wb.figures.layers(alone[0], taught[0])

# %% [markdown]
# ## Which layer settles first

# %%
wb.figures.churn_by_layer(taught[0])

# %% [markdown]
# ## Do teacher and student come to agree?
# Agreement is the share of objects, of those that both models match, whose teacher query and student query are paired with each other.

# %%
wb.figures.agreement(alone[0], taught[0])

# %% [markdown]
# ## Object by object
# The figure shows the twenty objects that changed their query most often in the distilled run, with one row per object and one column per
# evaluation.

# %%
wb.figures.holders(taught[0])

# %% [markdown]
# Step through one image with the sliders for the evaluation, the layer and the lowest score that is drawn. (A saved notebook shows a
# picture here until you run the cell.)

# %%
wb.stepper(taught[0], number=3)

# %% [markdown]
# **What it means.** With or without a teacher, the matching of a student becomes more stable during training. Where the bands of two arms
# do not overlap, every seed of one arm settled sooner than every seed of the other. Where they overlap, three seeds cannot decide. Here the
# AP bands lie far apart and the churn bands overlap: the feature term makes the student learn faster, and its effect on the matching is
# within the spread of the seeds.
