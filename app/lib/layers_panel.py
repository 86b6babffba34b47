"""Shows how often targets change their query from one decoder layer to the next."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from lib import held, page
from workbench.analysis.defined import LAYER_NUMBERS, undefined_of
from workbench.analysis.of_run import RunSplit
from workbench.views import overview


def layers_panel(shown: Sequence[RunSplit], chosen: Sequence[str], key: str, about: str) -> None:
    """Shows the churn between decoder layers of several runs, and why it is not defined for the others.

    Args:
        shown: the runs.
        chosen: their names.
        key: name of the chart, which differs between pages.
        about: what the chart's caption says after the number of targets.
    """
    st.markdown("**Churn between decoder layers**")
    layers = pd.concat([held.layers(own) for own in shown])
    runs = [own.run for own in shown]
    why = [said for number in LAYER_NUMBERS if (said := undefined_of(runs, number))]
    if len(layers) or not why:
        meaning = f"{overview.LAYERS_CAPTION} n = {int(layers['n'].sum())} targets {about}"
        page.chart(overview.layers_figure(layers, list(chosen)), key, meaning, layers)
    page.note(" ".join(why))
