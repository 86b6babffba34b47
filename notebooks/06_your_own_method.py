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
# # 06 · Your own method in 30 lines
#
# **Question:** I have an idea for a loss. How do I compare it with the others?
#
# A method consists of a configuration and a module that returns named loss terms. The idea of this notebook is to align the *direction* of
# the student's encoder features with the teacher's in each cell, and to leave their length free.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

# %%
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from workbench.methods.maps import MapConfig, MapMethod


class DirectionConfig(MapConfig, frozen=True):
    method: Literal["direction"] = "direction"
    published_weights: ClassVar[dict[str, float]] = {"features": 1.0}

    @property
    def term_names(self):
        return ("features",)


class Direction(MapMethod):
    """1 - cosine between the teacher's and the adapted student's features, mean over cells."""

    name = "direction"
    Config = DirectionConfig
    terms = "features"
    citation = "an idea of this notebook"

    def forward(self, student, teacher, targets, context):
        parts = []
        for pair in self.map_pairs(student, teacher):
            distance = 1 - F.cosine_similarity(pair.student, pair.teacher, dim=1)
            parts.append((distance * pair.inside[:, 0]).sum() / pair.inside.sum())
        return {"features": torch.stack(parts).sum()}


wb.register(Direction)

# %% [markdown]
# `map_pairs` returns the feature levels that both detectors have. If their widths differ, a trained 1×1 convolution adapts the student's
# features. `inside` is 1 inside the image and 0 in the padding. Before training, the workbench checks that the detectors provide what the
# method needs. If something is missing, the error message names it.
#
# ## Run it
# The schedule is the short one of notebook 01. `balance` sets the weight so that the gradient of the term starts at ten times that of the
# detection loss. If a term has no effect for a whole epoch, the run stops and names the term.

# %%
minute = ["train.steps=300", "train.evaluate_every=60", "train.checkpoint_every=300", "data.options.val=100", "data.options.test=100"]
mine = wb.train("shapes", name="first-direction", overrides=["methods=[{method: direction, balance: 10.0}]", *minute])
alone = wb.train("shapes", arm="undistilled", name="first-alone", overrides=minute)
taught = wb.train("shapes", name="first-taught", overrides=minute)

# %% [markdown]
# ## Compare it

# %%
wb.figures.progress(alone, taught, mine)

# %%
print(wb.compare({0: taught}, {0: mine}).sentence())

# %% [markdown]
# ## How does the term act on the student?
# The run logs the raw terms, their gradient norms and the cosine between their gradients and that of the detection loss:

# %%
wb.figures.losses(mine)

# %% [markdown]
# ## What if it does nothing?
# `wb.diagnose` looks for the usual causes in the files of a run: a class map that is off by one, a wrong normalisation, a weight that is
# too small, an adapter that absorbs the whole term, or a selection that is no better than chance.

# %%
found = wb.diagnose(mine, alone)
[(check.cause, check.outcome) for check in found.checks]

# %% [markdown]
# **What it means.** In this short run on one seed, learning the direction alone was better than no teacher and worse than DETRDistill. That
# is a hint and not a verdict. Your idea appears in the same tables and figures as the published methods, on the same seeds. To keep it, put
# the class into a package and register it under the entry point group `workbench.methods`. Recipes then find it by name, also on the
# command line.
