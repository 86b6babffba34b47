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
# **Question:** What must be true of my data, and what do the checks report if it is not?
#
# The workbench reads COCO JSON, Pascal VOC, KITTI and YOLO as they are on disk and recognises the format by itself. This notebook writes a
# small COCO dataset, breaks it in the usual ways, and looks at what the workbench reports.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

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
# One box has no width, one has a negative size, one reaches beyond the image, one contains NaN, and one refers to an image that does not
# exist:

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
# Each kind of problem has an *action*: it is repaired, it is dropped and counted, or training refuses to start. `data.policy` in a recipe
# changes the action (see `docs/data.md`). Nothing is repaired silently: the run records the counts too.
#
# ## VOC, KITTI, YOLO
# `wb.open_dataset(path, split)` reads them in the same way. If the files do not list the classes, `classes=[...]` gives their names and
# order:
#
# ```
# wb.open_dataset("VOCdevkit/VOC2012", "train")
# wb.open_dataset("kitti/training", "all", classes=["Car", "Pedestrian", "Cyclist"])
# wb.open_dataset("my_yolo/data.yaml", "train")
# ```
#
# ## Classes that differ from the teacher's
# Classes are matched by name. If names differ, `class_map` in the recipe says which class of the data is which class of the teacher.
# Classes that only the teacher knows are left out of every loss term, and the run reports them when it starts.

# %%
try:
    wb.train("shapes", name="mapped", overrides=["class_map={circle: disc}"])
except Exception as error:
    print(error)

# %% [markdown]
# ## Train on it
# `workbench run any --data PATH` trains a small detector from random weights. `workbench run bccd --data PATH` trains a teacher and distils
# it. The recipes `any` and `bccd` are short: copy one as a starting point.

# %% [markdown]
# **What it means.** Run `wb.check` (or `workbench data check PATH`) before the first training. Class ids that are off by one, boxes in the
# wrong format and unreadable files cost days if you find them later.
