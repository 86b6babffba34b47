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
# **Question:** Which method helps, and is the difference more than chance?
#
# Every method trains the same student with the same teacher and schedule. On each seed, all methods start from the same weights.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

METHODS = ["detrdistill", "fitnet", "fgd", "kd_detr"]
SEEDS = range(3)
runs = {arm: {seed: wb.train("compare/deformable_detr", arm=arm, seed=seed) for seed in SEEDS} for arm in ["undistilled", *METHODS]}
everything = [run for seeds in runs.values() for run in seeds.values()]

# %% [markdown]
# ## AP of each seed
# Each mark is one seed. Its bar is a 95 % interval over resampled images and shows how certain the AP of that checkpoint is. The spread of
# the seeds in a row shows how certain the AP of the *method* is. The dotted line is the teacher.

# %%
wb.figures.results(*everything)

# %% [markdown]
# ## Verdicts
# Differences are paired: both sides use the same resampled images and the same seeds. With fewer than five seeds per side, the verdict
# holds for these checkpoints and not for the method.

# %%
for arm in METHODS:
    print(f"{arm}: {wb.compare(runs['undistilled'], runs[arm]).sentence()}")

# %% [markdown]
# ## Which errors does it fix?
# The first figure shows the AP50 that each type of error costs. The second shows how DETRDistill changes these costs.

# %%
wb.figures.costs(runs["undistilled"][0], *(runs[arm][0] for arm in METHODS))

# %%
wb.figures.cost_differences(runs["detrdistill"][0], runs["undistilled"][0])

# %% [markdown]
# ## What does it cost?
# At equal steps, every student has seen the same number of images, but a distilled student also needs its teacher to process them.
# `compute_seconds` counts both models.

# %%
wb.summary(*everything)[["arm", "seed", "ap", "churn", "agreement", "compute_seconds"]]

# %% [markdown]
# **What it means.** A method is better than another if it is better on every seed *and* at the same cost. For the comparison at equal
# compute (`workbench compare`, `docs/results.md`), each distilled run is shortened to the compute time of the student trained alone.
