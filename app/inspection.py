"""Open this selection in FiftyOne: the images of a selection in the App that `workbench inspect` serves, embedded below the button."""

import shlex
from collections.abc import Sequence

import shared
import streamlit as st

from workbench.runs import Run
from workbench.views.catalog import VALIDATION
from workbench.views.fiftyone import dataset_name
from workbench.views.fiftyone.app import running, show

MOST = 500  # images of a selection


def open_selection(run: Run, baseline: Run | None, images: Sequence[int], key: str) -> None:
    """A button that shows these images, or the command that makes it possible where the App does not run.

    Args:
        run: whose queries are looked at.
        baseline: that the page compares it with.
        images: ids, in order; of more than ``MOST`` the first.
        key: of the button.
    """
    server = running()
    if server is None:
        against = f" --against {shlex.quote(baseline.name)}" if baseline is not None else ""
        shared.note(f"To open this selection in FiftyOne, first run: workbench inspect {shlex.quote(run.name)}{against}")
        return
    chosen = list(dict.fromkeys(int(image) for image in images))[:MOST]
    if st.button(f"Open these {len(chosen)} images in FiftyOne", key=key, icon=":material/open_in_new:"):
        with shared.guarded("FiftyOne cannot show this selection"):
            address = show(server, dataset_name(run, baseline, VALIDATION), chosen)
            st.markdown(f"[FiftyOne in a window of its own]({address})")
            st.iframe(address, height=720)
