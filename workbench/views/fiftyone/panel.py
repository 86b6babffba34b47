"""Extends FiftyOne's App by a panel about the matching of one image, and by a link to the image's page on the dashboard.

It runs in the process of the App's server.
"""

import functools
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import fiftyone.operators as foo
from fiftyone.operators import types

from workbench.analysis.of_run import SPLITS, open_data
from workbench.datasets.base import Dataset
from workbench.errors import WorkbenchError
from workbench.services.dashboard import dashboard_address
from workbench.store.run import Run
from workbench.views.fiftyone.connection import FoDataset
from workbench.views.fiftyone.dataset import INFO
from workbench.views.matching import image_figures, plain_json

# a new browser tab, because the App may itself be embedded in the dashboard's page
LINK = {"label": "Open in the dashboard", "icon": "open_in_new", "componentsProps": {"button": {"target": "_blank", "rel": "noopener"}}}
NO_IMAGE = "There is no image to show."


@functools.lru_cache(maxsize=4)
def _data(run_path: str, split: str) -> Dataset:
    return open_data(Run(Path(run_path)).info(), split)


def image_address(info: dict[str, Any], index: int) -> str:
    """Returns the address of an image's page on the dashboard.

    Args:
        info: origin of the dataset, as its info holds it.
        index: index of the image in the split.
    """
    split = {} if info["split"] == SPLITS[0] else {"split": info["split"]}
    query = {"run": Path(info["run"]).name, **split, "step": info["step"], "image": index + 1}
    return dashboard_address(f"/image?{urlencode(query)}")


def _chosen(ctx: Any) -> tuple[dict[str, Any], int] | None:
    """Returns the dataset's origin and the index of the open, else selected, else first image of the view; None if it has no image."""
    if ctx.dataset is None:
        return None
    dataset: FoDataset = ctx.dataset
    info = dataset.info.get(INFO)
    sample = ctx.current_sample or next(iter(ctx.selected or ctx.view.limit(1).values("id")), None)
    if info is None or sample is None:
        return None
    # patches have ids of their own
    image_id = ctx.view[sample]["sample_id"] if "sample_id" in ctx.view.get_field_schema() else sample
    wanted = dataset.select(image_id).values("image_id")[0]
    records = _data(info["run"], info["split"]).records
    index = next((number for number, record in enumerate(records) if record.image_id == wanted), None)
    return (info, index) if index is not None else None


class MatchingPanel(foo.Panel):
    """A panel with figures about the image that is open in the App, else selected in its grid, else the first."""

    @property
    def config(self) -> foo.PanelConfig:
        return foo.PanelConfig(name="workbench_matching", label="Matching", icon="join_inner", surfaces="grid modal")

    def on_load(self, ctx: Any) -> None:
        self._draw(ctx)

    def on_change_selected(self, ctx: Any) -> None:
        self._draw(ctx)

    def on_change_current_sample(self, ctx: Any) -> None:
        self._draw(ctx)

    def _draw(self, ctx: Any) -> None:
        ctx.panel.state.titles, ctx.panel.state.note, ctx.panel.state.link = [], NO_IMAGE, ""
        try:
            chosen = _chosen(ctx)
            if chosen is None:
                return
            info, index = chosen
            data = _data(info["run"], info["split"])
            figures = image_figures(Run(Path(info["run"])), info["split"], info["step"], data, index)
        except WorkbenchError as error:
            ctx.panel.state.note = str(error)
            return
        record = data.records[index]
        ctx.panel.state.note = f"image_id {record.image_id}, {len(record.boxes)} targets, step {info['step']}. Select another in the grid."
        ctx.panel.state.note += "".join(f" {sentence}" for sentence in info.get("not_defined", ()))
        ctx.panel.state.link = image_address(info, index)
        ctx.panel.state.titles = list(figures)
        for number, figure in enumerate(figures.values()):
            drawn = plain_json(figure)
            ctx.panel.set_state(f"layout_{number}", drawn["layout"])
            ctx.panel.set_data(f"figure_{number}", drawn["data"])

    def render(self, ctx: Any) -> types.Property:
        """Returns the note, the link to the dashboard, and the figures below each other."""
        panel = types.Object()
        panel.str("note", view=types.LabelValueView(label="Image", read_only=True), default=ctx.panel.state.note)
        if ctx.panel.state.link:
            panel.btn("dashboard", href=ctx.panel.state.link, **LINK)
        for number, title in enumerate(ctx.panel.state.titles or []):
            layout = {**(ctx.panel.get_state(f"layout_{number}") or {}), "title": {"text": title, "font": {"size": 13}}, "autosize": True}
            panel.plot(f"figure_{number}", layout=layout, config={"displaylogo": False, "responsive": True})
        return types.Property(panel, view=types.GridView(orientation="vertical", gap=1))


class OpenInDashboard(foo.Operator):
    """An operator that shows the link to the image's page on the dashboard."""

    @property
    def config(self) -> foo.OperatorConfig:
        return foo.OperatorConfig(name="open_in_dashboard", label="Workbench: open this image in the dashboard", dynamic=True)

    def resolve_input(self, ctx: Any) -> types.Property:
        inputs = types.Object()
        chosen = _chosen(ctx)
        if chosen is None:
            inputs.view("warning", types.Warning(label=NO_IMAGE))
        else:
            inputs.btn("dashboard", href=image_address(*chosen), **LINK)
        return types.Property(inputs, view=types.View(label="Open in the dashboard"))

    def execute(self, ctx: Any) -> dict[str, str]:
        chosen = _chosen(ctx)
        return {"address": image_address(*chosen) if chosen is not None else ""}
