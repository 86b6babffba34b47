"""Entry of the dashboard: `workbench app` runs this file."""

import shared
import streamlit as st

# less air around pages of charts and tables; figures take the page's ground and ink, whichever theme that is of
STYLE = f"""
.block-container {{padding: 3.6rem 2rem 2rem 2rem; max-width: 1760px}}
[data-testid='stCaptionContainer'] p {{line-height: 1.35}}
.stPlotlyChart .main-svg {{background: none !important}}
.stPlotlyChart text[style*='fill: rgb{shared.INK}'] {{fill: currentColor !important}}
.stPlotlyChart .modebar-btn path {{fill: currentColor !important; opacity: 0.5}}
"""

st.set_page_config(page_title="Workbench", page_icon=":material/query_stats:", layout="wide")
st.html(f"<style>{STYLE}</style>")
pages = [
    st.Page("overview.py", title="Overview", icon=":material/stacked_line_chart:", default=True),
    st.Page("diagnosis.py", title="Diagnosis", icon=":material/troubleshoot:"),
    st.Page("training.py", title="Training", icon=":material/show_chart:"),
    st.Page("stability.py", title="Match stability", icon=":material/swap_horiz:"),
    st.Page("value.py", title="Query value", icon=":material/bar_chart:"),
    st.Page("masks.py", title="Selection masks", icon=":material/gradient:"),
    st.Page("image.py", title="Matching explorer", icon=":material/image_search:"),
    st.Page("errors.py", title="Errors", icon=":material/rule:"),
    st.Page("storage.py", title="Caches and runs", icon=":material/database:"),
]
st.navigation(pages, position="top").run()
