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
# **Question:** A DETR predicts with a fixed set of *queries*. Which of the teacher's queries are worth learning from?
#
# Three quantities describe queries. The *quality* of a query combines its score with its overlap with the object it is matched to. The
# *selection mask* shows where on the image all queries look, weighted by quality. The *value* of a query is the AP that is lost without it.
# The two runs train for the full schedule of 1,200 steps: one without a teacher, and one that learns the teacher's features where the mask
# is bright. If they do not exist yet, training takes a few minutes each.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

alone = wb.train("shapes", arm="undistilled")
taught = wb.train("shapes", arm="features")

# %% [markdown]
# ## Quality
# The quality of a query is $q = s^{\gamma} \cdot \mathrm{IoU}^{1-\gamma}$, from its score $s$ and the IoU with its matched target. It is 0
# for queries without a target. A few queries of an image have nearly all of the quality:

# %%
data = wb.open_data(taught.info())
_, teacher = wb.figures.image_rows(taught, data.records[2].image_id)
last = teacher[teacher["layer"] == teacher["layer"].max()]
last.sort_values("quality", ascending=False)[["query", "score", "match", "match_iou", "quality"]].head(8)

# %% [markdown]
# ## Where they look
# DETRDistill computes this mask from the teacher's queries and their quality. If the run has recorded the student's mask, the figure shows
# that mask and the difference too. The student's feature errors count most where the mask is bright.

# %%
wb.figures.masks(taught, number=3)

# %% [markdown]
# ## What a slot is worth
# A *slot* is one of the student's queries, the same for every image. The figure shows how far AP drops without the detections of a slot. AP
# is recomputed exactly, and bars are 95 % intervals (jackknife over images). Drops do not add up, because another slot may detect the same
# object.

# %%
wb.figures.slot_values(taught)

# %% [markdown]
# ## Does quality predict what the student gains?
# The *gain* of an object is the score × IoU of its matched query in the distilled student minus the same in the student trained alone. The
# figure shows the rank correlation of each property with gain. Open marks control for how well the student trained alone does on the
# object, because a bad result can only improve.

# %%
wb.figures.predictors(taught, alone)

# %% [markdown]
# **What it means.** Look at the open marks. If an interval excludes 0, the property predicts gain beyond "it was bad before". If a property
# correlates only without that control, the correlation is regression to the mean. This is why `docs/results.md` compares selection by
# quality with a uniform weight before it draws a conclusion.
