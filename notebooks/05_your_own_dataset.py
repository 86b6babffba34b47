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
# # 05 · Your own dataset
#
# **Question:** what has to be true of my data, and what do the checks say when it is not?
#
# COCO JSON, Pascal VOC, KITTI and YOLO are read as they lie on disk; the format is found by what is there. This notebook writes a small
# COCO folder, breaks it in the ways that datasets are usually broken, and looks at what the workbench makes of it.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

# %%
import json
from pathlib import Path

from workbench.datasets.coco import write_coco

folder = Path("example_data")
for split in ("train", "val"):
    file = write_coco(wb.open_dataset("shapes", split, train=24, val=8), folder)
sorted(str(path) for path in folder.rglob("*.json"))

# %% [markdown]
# ## A dataset is a split of images and their targets

# %%
data = wb.open_dataset(folder, "train")
print(data.classes, len(data), "images,", sum(len(record.boxes) for record in data.records), "boxes")

# %% [markdown]
# ## Now break it
# A box of no size, one with its corners swapped, one that leaves the image, a number that is none, an image that is not there:

# %%
file = next(folder.rglob("*train*.json"))
content = json.loads(file.read_text())
boxes = content["annotations"]
boxes[0]["bbox"] = [10, 10, 0, 5]
boxes[1]["bbox"] = [60, 60, -20, -20]
boxes[2]["bbox"] = [80, 80, 400, 10]
boxes[3]["bbox"] = [float("nan"), 1, 2, 3]
boxes[4]["image_id"] = 123456
file.write_text(json.dumps(content))

report = wb.check(folder)
[(row["severity"], row["kind"], row["action"], row["count"]) for row in report.rows()]

# %% [markdown]
# Each kind of problem has an *action*: it is mended, dropped and counted, or refused before training starts. `data.policy` in a recipe
# changes it (`docs/data.md`). Nothing is repaired in silence: the counts stand in the run as well.
#
# ## VOC, KITTI, YOLO
# `wb.open_dataset(path, split)` reads them the same way. `classes=[...]` fixes names and order where the files do not:
#
# ```
# wb.open_dataset("VOCdevkit/VOC2012", "train")
# wb.open_dataset("kitti/training", "all", classes=["Car", "Pedestrian", "Cyclist"])
# wb.open_dataset("my_yolo/data.yaml", "train")
# ```
#
# ## Another set of classes than the teacher's
# Classes go by name. Where names differ, the recipe says which class of the teacher is which of the data; what the teacher knows and the
# data does not is left out of every term, and said when the run starts.

# %%
try:
    wb.train("shapes", name="mapped", overrides=["class_map={circle: disc}", *SHORTER])
except Exception as error:
    print(error)

# %% [markdown]
# ## Train on it
# `workbench run any --data PATH` trains a small detector from random weights; `workbench run bccd --data PATH` trains a teacher and distils
# it. The recipes `any` and `bccd` are short: copy one and go on from there.

# %% [markdown]
# **What it means.** Let `wb.check` (or `workbench data check PATH`) read the data before the first training: class ids off by one, boxes in
# the wrong format and unreadable files cost days when they are found after.
