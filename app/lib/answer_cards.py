"""Shows whether distillation helped the arms at hand: a sentence, a card for each arm, and both as text to copy."""

from collections.abc import Sequence

import streamlit as st

from lib import held, page
from workbench.views.answers import CAPTION, answers_html, answers_text
from workbench.views.catalog import Entry, comparisons


@page.guarded("Whether distillation helped cannot be said")
def answer_cards(chosen: Sequence[Entry], entries: Sequence[Entry]) -> None:
    """Shows the answer for the distilled arms among the chosen runs, over all finished seeds of these arms.

    Args:
        chosen: runs whose arms are compared.
        entries: all runs.
    """
    runs = comparisons(chosen, entries)
    found = [one for own in runs for one in held.answers(own)]
    if not found:
        st.caption("None of these runs is a finished distilled run, so there is nothing to say yet on whether distillation helped.")
        return
    st.html(answers_html(found))
    page.note(CAPTION)
    with st.expander("What happened here, as text to copy"):
        st.code(answers_text(found, [run.name for own in runs for run in own]), language=None, wrap_lines=True)
