"""Open this selection in FiftyOne: the images of a selection in the App that `workbench inspect` serves, embedded below the button."""

import shlex
from collections.abc import Sequence

import streamlit as st

from lib import page
from workbench.analysis.of_run import SPLITS, RunData
from workbench.views.catalog import Entry
from workbench.views.fiftyone.app import running, show
from workbench.views.fiftyone.connection import dataset_name

MOST = 500  # images of a selection
HEIGHT = 820
EMBEDDED = "fiftyone"  # of the session: the part of a page that the App was opened in


@st.fragment
def open_selection(data: RunData, baseline: Entry | None, images: Sequence[int], key: str) -> None:
    """A button that shows these images, or the command that makes it possible where the App does not run.

    Once it was pressed, the App stays on the page, with what it shows, until it is closed or opened elsewhere.

    Args:
        data: the run whose queries are looked at, and the split.
        baseline: that the page compares it with.
        images: ids, in order; of more than ``MOST`` the first.
        key: of this part of the page.
    """
    server, run, against = running(), data.run, baseline.run if baseline is not None else None
    if server is None:
        options = f" --against {shlex.quote(against.name)}" if against is not None else ""
        options += f" --split {data.split}" if data.split != SPLITS[0] else ""
        page.note(f"To open this selection in FiftyOne, first run: workbench inspect {shlex.quote(run.name)}{options}")
        return
    chosen = list(dict.fromkeys(int(image) for image in images))[:MOST]
    with st.container(horizontal=True, vertical_alignment="center"):
        label = "Open this image in FiftyOne" if len(chosen) == 1 else f"Open these {len(chosen)} images in FiftyOne"
        if st.button(label, key=key, icon=":material/open_in_new:"):
            with page.guarded("FiftyOne cannot show this selection"):
                # a comparison with the baseline of the page, else what there is of the run alone
                show(server, [dataset_name(run, against, data.split), dataset_name(run, None, data.split)], chosen)
                st.session_state[EMBEDDED] = key
        if st.session_state.get(EMBEDDED) == key:
            st.button("Close", key=f"{key}-close", on_click=st.session_state.pop, args=(EMBEDDED,))
            st.markdown(f"[In a window of its own]({server.address})")
    if st.session_state.get(EMBEDDED) == key:
        st.iframe(server.address, height=HEIGHT)
