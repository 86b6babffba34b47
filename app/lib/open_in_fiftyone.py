"""Opens a selection of images in the FiftyOne App that `workbench inspect` serves, embedded below a button."""

import shlex
from collections.abc import Sequence

import streamlit as st

from lib import page
from workbench.analysis.of_run import SPLITS, RunData
from workbench.views.catalog import Entry
from workbench.views.fiftyone.app import address, running, show
from workbench.views.fiftyone.connection import dataset_name

MOST = 500  # images in a selection
HEIGHT = 820
EMBEDDED = "fiftyone"  # key of the session state: the part of a page that shows the App


@st.fragment
def open_selection(data: RunData, baseline: Entry | None, images: Sequence[int], key: str) -> None:
    """Shows a button that opens these images in the App. If the App is not running, shows the command that starts it.

    The App then stays on the page until the user closes it or opens it in another part of a page.

    Args:
        data: run and split that the page shows.
        baseline: run that the page compares it with.
        images: ids in order; only the first ``MOST`` are opened.
        key: identifies this part of the page.
    """
    server, run, against = running(), data.run, baseline.run if baseline is not None else None
    if server is None:
        options = f" --against {shlex.quote(against.name)}" if against is not None else ""
        options += f" --split {data.split}" if data.split != SPLITS[0] else ""
        page.note(f"To open these images in FiftyOne, first run this command: workbench inspect {shlex.quote(run.name)}{options}")
        return
    opened_at = address(server, st.context.headers.get("Host", ""))
    chosen = list(dict.fromkeys(int(image) for image in images))[:MOST]
    with st.container(horizontal=True, vertical_alignment="center"):
        label = "Open this image in FiftyOne" if len(chosen) == 1 else f"Open these {len(chosen)} images in FiftyOne"
        if st.button(label, key=key, icon=":material/open_in_new:"):
            with page.guarded("FiftyOne cannot show these images"):
                # prefer the comparison with the baseline; otherwise open the dataset of this run alone
                show(server, [dataset_name(run, against, data.split), dataset_name(run, None, data.split)], chosen)
                st.session_state[EMBEDDED] = key
        if st.session_state.get(EMBEDDED) == key:
            st.button("Close", key=f"{key}-close", on_click=st.session_state.pop, args=(EMBEDDED,))
            st.markdown(f"[Open in a separate window]({opened_at})")
    if st.session_state.get(EMBEDDED) == key:
        st.iframe(opened_at, height=HEIGHT)
