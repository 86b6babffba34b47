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
# # 04 · Methods side by side
#
# **Question:** which method helps, and is the difference more than chance?
#
# Every method teaches the same student from the same teacher with the same schedule, and starts from the same weights on each seed.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

METHODS = ["detrdistill"] if SHORTER else ["detrdistill", "fitnet", "fgd", "kd_detr"]
SEEDS = range(1 if SHORTER else 3)
runs = {
    arm: {seed: wb.train("compare/deformable_detr", arm=arm, seed=seed, overrides=SHORTER) for seed in SEEDS}
    for arm in ["undistilled", *METHODS]
}
everything = [run for seeds in runs.values() for run in seeds.values()]

# %% [markdown]
# ## AP, a mark a seed
# Bars are 95 % intervals over resampled images: they say how sure one checkpoint's AP is. How far seeds of one row lie apart says how sure
# the *method* is. The dotted line is the teacher.

# %%
wb.figures.results(*everything)

# %% [markdown]
# ## Verdicts
# Differences are paired: the same resampled images and the same seed on both sides. With fewer than five seeds a side the sentence speaks
# of these checkpoints, not of the method.

# %%
for arm in METHODS:
    print(f"{arm}: {wb.compare(runs['undistilled'], runs[arm]).sentence()}")

# %% [markdown]
# ## Which errors does it mend?
# What each type of error costs in AP50, and what DETRDistill changes of it.

# %%
wb.figures.costs(runs["undistilled"][0], *(runs[arm][0] for arm in METHODS))

# %%
wb.figures.cost_differences(runs["detrdistill"][0], runs["undistilled"][0])

# %% [markdown]
# ## And at what price?
# At equal steps a taught student has seen as many images, and its teacher has too. `compute_seconds` counts both.

# %%
wb.summary(*everything)[["arm", "seed", "ap", "churn", "agreement", "compute_seconds"]]

# %% [markdown]
# **What it means.** A method is better than another when its marks lie apart on every seed *and* the price is the same. The comparison at
# equal compute (`workbench compare`, `docs/results.md`) shortens each taught run to the seconds that the student alone took.
