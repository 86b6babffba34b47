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
# **Question:** a DETR decides anew at every step which query serves which object. Does a student that is taught settle sooner?
#
# Compared at evaluations on un-augmented images: of the objects matched at two moments, how many changed their query? That is *churn*.
# Moments are evaluations of one run, decoder layers of one evaluation, or the same evaluation of several seeds.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

SEEDS = range(1 if SHORTER else 3)
alone = [wb.train("shapes", arm="undistilled", seed=seed, overrides=SHORTER) for seed in SEEDS]
taught = [wb.train("shapes", arm="features", seed=seed, overrides=SHORTER) for seed in SEEDS]

# %% [markdown]
# ## Over training, and over seeds
# A line is the mean over seeds, the band reaches from the lowest to the highest. Slots of different seeds share no identity, so only the
# numbers are laid side by side.

# %%
wb.figures.seeds(*alone, *taught)

# %% [markdown]
# ## Between the layers of the decoder
# A decoder refines: how many objects change hands from one layer to the next, in the student and in its teacher?

# %%
wb.figures.layers(alone[0], taught[0])

# %% [markdown]
# ## Which layer settles first

# %%
wb.figures.churn_by_layer(taught[0])

# %% [markdown]
# ## Do teacher and student come to agree?
# Of the objects that both match, the share whose two queries are each other's mates.

# %%
wb.figures.agreement(alone[0], taught[0])

# %% [markdown]
# ## Object by object
# The twenty objects that changed hands most often in the taught run: one row an object, one column an evaluation.

# %%
wb.figures.holders(taught[0])

# %% [markdown]
# And one image to step through: evaluations, layers, and the least score that is drawn. (In a saved notebook that is only viewed this is a
# picture.)

# %%
wb.stepper(taught[0], number=3)

# %% [markdown]
# **What it means.** Taught or not, a student's matching grows calmer as training goes on. Where the bands of two arms lie apart, every seed
# of one settled sooner than every seed of the other; where they overlap, these seeds do not tell. Here the bands of AP lie far apart and
# those of churn overlap: the features term makes the student learn faster, and what it does to the matching is within the spread of three
# seeds.
