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
# **Question:** I have an idea for a loss. How do I try it against the others?
#
# A method is a configuration and a module that returns named terms. The idea here: pull the *direction* of the student's encoder features
# towards the teacher's, cell by cell, and leave their length free.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

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
# `map_pairs` gives the levels that both detectors have, the student's through a trained 1×1 convolution where widths differ, and `inside`
# tells image from padding. What the method needs of a detector is checked before training: run it on a pair that lacks it and the message
# names what.
#
# ## Run it
# The same short schedule as in notebook 01. `balance` sets the weight so that the term starts at ten times the gradient of the detection
# loss; a term that then teaches nothing for a whole epoch would stop the run by name.

# %%
minute = ["train.steps=300", "train.evaluate_every=60", "train.checkpoint_every=300", "data.options.val=100", "data.options.test=100"]
mine = wb.train("shapes", name="first-direction", overrides=["methods=[{method: direction, balance: 10.0}]", *minute, *SHORTER])
alone = wb.train("shapes", arm="undistilled", name="first-alone", overrides=[*minute, *SHORTER])
taught = wb.train("shapes", name="first-taught", overrides=[*minute, *SHORTER])

# %% [markdown]
# ## Compare it

# %%
wb.figures.progress(alone, taught, mine)

# %%
print(wb.compare({0: taught}, {0: mine}).sentence())

# %% [markdown]
# ## What does the term send into the student?
# Raw terms, gradient norms, and the cosine with the detection loss, as logged:

# %%
wb.figures.losses(mine)

# %% [markdown]
# ## And if it does nothing?
# `wb.diagnose` looks for the usual causes in the files of a run: a class map off by one, a wrong normalisation, a weight too small, an
# adapter that swallows everything, a selection no better than chance.

# %%
found = wb.diagnose(mine, alone)
[(check.cause, check.outcome) for check in found.checks]

# %% [markdown]
# **What it means.** In this minute the direction alone beat no teacher and lost to DETRDistill, on one seed: a hint, no verdict. An idea
# becomes a row in the same tables and figures as the published methods, on the same seeds. To keep it, put the
# class into a package under the entry point group `workbench.methods`: recipes then know it by name, on the command line as well.
