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
# # 07 · From notebook to production
#
# **Question:** how does the student leave the workbench, and is it still the same model?
#
# The worst export is one that is silently wrong. Here an export is written under a temporary name, run next to the original on every image
# of the evaluation split, and only kept when it answers the same.

# %%
import os

import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # figures as data: notebooks stay small, and Lab draws them
SHORTER = os.environ.get("WORKBENCH_NOTEBOOK_OVERRIDES", "").split()  # empty, but in the tests, which train for a few steps

# %%
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

run = wb.train("shapes", arm="features", overrides=SHORTER)
out = Path("example_export")

# %% [markdown]
# ## ONNX

# %%
print(wb.export_onnx(run.name, out / "student.onnx"))

# %% [markdown]
# Boxes may differ by 1e-3, scores by 1e-4, AP by 0.1. The file says itself what it takes:

# %%
import onnx

facts = {entry.key: entry.value for entry in onnx.load(out / "student.onnx").metadata_props}
{name: json.loads(facts["workbench"])[name] for name in ("family", "classes", "height", "width", "padding", "checked")}

# %% [markdown]
# ## Deploy it
# Nothing of the workbench, and no torch: Pillow for the pixels, onnxruntime for the model. Normalisation is inside the file, the input is
# the picture itself.

# %%
import onnxruntime

session = onnxruntime.InferenceSession(out / "student.onnx", providers=["CPUExecutionProvider"])
interface = json.loads(facts["workbench"])
picture = Image.fromarray(wb.open_data(run.info()).image(2))
pixels = np.asarray(picture.convert("RGB").resize((interface["width"], interface["height"]), Image.Resampling.BILINEAR))
scores, boxes, *_ = session.run(None, {"images": pixels[None]})

shown = picture.resize((384, 384))
for score, (cx, cy, w, h) in zip(scores[0], boxes[0]):
    if score.max() >= 0.4:
        corners = [(cx - w / 2) * 384, (cy - h / 2) * 384, (cx + w / 2) * 384, (cy + h / 2) * 384]
        ImageDraw.Draw(shown).rectangle(corners, outline="orange", width=3)
        ImageDraw.Draw(shown).text(corners[:2], f"{interface['classes'][score.argmax()]} {score.max():.2f}", fill="white")
shown

# %% [markdown]
# ## Or as a plain transformers folder
# For whoever lives in that library: `AutoModelForObjectDetection` and `AutoImageProcessor` alone load it; its answers are equal to 1e-5.

# %%
print(wb.export_transformers(run.name, out / "student-transformers"))
sorted(path.name for path in (out / "student-transformers").iterdir())

# %% [markdown]
# **What it means.** What runs in production is the file that was checked, on the images that it was evaluated on, and the file carries the
# proof in its metadata. `workbench export RUN --onnx` does the same on the command line, and exits with an error when the export is
# refused.
