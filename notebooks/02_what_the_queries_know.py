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
# # 02 · What the teacher's queries know
#
# **Question:** a DETR answers with a fixed set of *queries*. Which of the teacher's are worth learning from?
#
# Three quantities say something about a query: its *quality* (how sure and how well placed it is on the object it is matched to), the
# *selection mask* (where on the image all queries together look, weighted by quality), and its *value* (what AP loses without it). The runs
# here are full schedules of 1,200 steps, one without a teacher and one that learns the teacher's features where the mask is bright; they
# are trained if they are not there yet, which takes a few minutes each.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

alone = wb.train("shapes", arm="undistilled", overrides=SHORTER)
taught = wb.train("shapes", arm="features", overrides=SHORTER)

# %% [markdown]
# ## Quality
# $q = s^{\gamma} \cdot \mathrm{IoU}^{1-\gamma}$ of a query with its matched target, 0 for queries without one. A few queries of an image
# carry nearly all of it:

# %%
data = wb.open_data(taught.info())
_, teacher = wb.figures.image_rows(taught, data.records[2].image_id)
last = teacher[teacher["layer"] == teacher["layer"].max()]
last.sort_values("quality", ascending=False)[["query", "score", "match", "match_iou", "quality"]].head(8)

# %% [markdown]
# ## Where they look
# The mask that DETRDistill makes of the teacher's queries and their quality; where the run keeps the student's, that one and the
# difference as well. Errors of the student's features count where the mask is bright.

# %%
wb.figures.masks(taught, number=3)

# %% [markdown]
# ## What a slot is worth
# The drop in AP when all detections of one query slot are taken away, exactly recomputed; bars are 95 % intervals (jackknife over images).
# Drops do not add up: when a slot is gone, another may answer in its place.

# %%
wb.figures.slot_values(taught)

# %% [markdown]
# ## Does quality predict what the student gains?
# *Gain* of an object is score × IoU of the query that serves it, taught minus alone. Each property of the object is ranked against it; open
# marks hold fixed how well the student alone already did, because what is bad can only improve.

# %%
wb.figures.predictors(taught, alone)

# %% [markdown]
# **What it means.** Look at the open marks: an interval that leaves out 0 says that the property tells something about gain beyond "it was
# bad before". A property that only correlates without that control is regression to the mean. That is why a selection by quality has to be
# compared with a uniform weight before it is believed; `docs/results.md` does so.
