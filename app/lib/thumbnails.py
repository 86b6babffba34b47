"""Shows the images behind a number as thumbnails, of which one is chosen by a click or by its place."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import streamlit as st

from lib import choices, held, page
from lib.held import RESULTS
from workbench.analysis.of_run import RunData
from workbench.views.gallery import Thumbnail, gallery_figure

COLUMNS, AT_ONCE = 4, 16


def gallery(
    key: str, data: RunData, images: pd.DataFrame, boxes: Callable[[int], Mapping[str, np.ndarray]], noun: str, meaning: str
) -> int:
    """Shows thumbnails and returns the id of the chosen image, which the address keeps as ``image_id``.

    Args:
        key: name of the chart.
        data: run and split of the images.
        images: ``image_id`` and ``n``, in the order in which they are shown; not empty.
        boxes: returns the boxes that are drawn on an image, by kind of ``sheet.COLOURS``, in pixels.
        noun: what ``n`` counts, in the singular.
        meaning: caption without the numbers of images.
    """
    known = images["image_id"].tolist()
    asked = choices.choose("image_id", known, known[0])
    place = {image: number for number, image in enumerate(known, 1)}
    # the thumbnails are those around the chosen image
    shown = "tiles"
    start = (place[asked] - 1) // AT_ONCE * AT_ONCE + 1
    st.session_state[shown] = start
    if len(known) > AT_ONCE:
        st.number_input(f"First image shown (of {len(known)})", 1, len(known), key=shown, step=AT_ONCE, width=200,
                        on_change=_turn, args=(shown, known))  # fmt: skip
    part = images.iloc[start - 1 : start - 1 + AT_ONCE]
    positions = RESULTS.dataset(data).positions
    counts = dict(images.itertuples(index=False))
    thumbnails = [
        Thumbnail(held.pixels(data, positions[image]), image, f"{image}: {counts[image]} {noun}{'s' * (counts[image] != 1)}", boxes(image))
        for image in part["image_id"].tolist()
    ]
    meaning = f"{meaning} n = {len(known)} images, those with most first; {len(part)} are shown with their ids. Click one to see it larger."
    page.chart(gallery_figure(thumbnails, COLUMNS, asked), key, meaning, images, on_select=lambda: _keep(key), modes=["points"])
    choices.write_address(image_id=asked)
    return asked


def _turn(shown: str, known: list[int]) -> None:
    """Chooses the first of the thumbnails that the number asks for."""
    st.session_state["image_id"] = known[(int(st.session_state[shown]) - 1) // AT_ONCE * AT_ONCE]


def _keep(key: str) -> None:
    """Stores the image that was clicked."""
    if found := choices.clicked(key):
        st.session_state["image_id"] = found[0]
