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
# **Question:** How do I export the student, and is the exported model still the same?
#
# The worst export is one that is silently wrong. The workbench therefore writes an export under a temporary name, runs it next to the
# original on every image of the evaluation split, and keeps it only if both give the same results.

# %%
import plotly.io

import workbench.notebook as wb

plotly.io.renderers.default = "plotly_mimetype"  # store figures as data: notebooks stay small, and JupyterLab draws them

# %%
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

run = wb.train("shapes", arm="features")
out = Path("example_export")

# %% [markdown]
# ## ONNX

# %%
print(wb.export_onnx(run.name, out / "student.onnx"))

# %% [markdown]
# Boxes may differ by 1e-3, scores by 1e-4 and AP by 0.1. The metadata of the file describes its inputs:

# %%
import onnx

facts = {entry.key: entry.value for entry in onnx.load(out / "student.onnx").metadata_props}
{name: json.loads(facts["workbench"])[name] for name in ("family", "classes", "height", "width", "padding", "checked")}

# %% [markdown]
# ## Deploy it
# Inference needs neither the workbench nor torch, only Pillow for the pixels and onnxruntime for the model. The file contains the
# normalisation, so the input is the image itself.

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
# ## Export to transformers
# If you use that library, `AutoModelForObjectDetection` and `AutoImageProcessor` load this folder without the workbench. Its outputs equal
# those of the original to 1e-5.

# %%
print(wb.export_transformers(run.name, out / "student-transformers"))
sorted(path.name for path in (out / "student-transformers").iterdir())

# %% [markdown]
# **What it means.** The file that runs in production is the file that was checked on the images of the evaluation, and its metadata
# contains the proof. `workbench export RUN --onnx` does the same on the command line and exits with an error if the check fails.
