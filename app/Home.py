"""Starts the dashboard and lists its pages; `workbench app` runs this file."""

import streamlit as st

from lib import page

# less space around charts and tables; figures take their background and text colour from the page, in the light and the dark theme
STYLE = f"""
.block-container {{padding: 3.6rem 2rem 2rem 2rem; max-width: 1760px}}
[data-testid='stCaptionContainer'] p {{line-height: 1.35}}
.stPlotlyChart .main-svg {{background: none !important}}
.stPlotlyChart text[style*='fill: rgb{page.INK}'] {{fill: currentColor !important}}
.stPlotlyChart .parcoords text {{text-shadow: none !important}}
.stPlotlyChart .parcoords :is(.axis path, .axis line) {{stroke: currentColor !important; stroke-opacity: 0.5}}
[data-testid='stMetricValue'] {{font-size: 1.4rem}}
[data-testid='stMultiSelect'] [data-tag] {{background: rgba(128, 128, 128, 0.22) !important; color: inherit !important}}
[data-testid='stCaptionContainer'] {{color: inherit; opacity: 0.8}}
.stPlotlyChart .modebar-btn path {{fill: currentColor !important; opacity: 0.5}}
"""

st.set_page_config(page_icon=":material/query_stats:", layout="wide")
st.html(f"<style>{STYLE}</style>")
# The folder is not called `pages`: if a link to a page is opened first, Streamlit runs a file of `pages` alone, without this one
pages = [
    st.Page("screens/overview.py", title="Overview", icon=":material/stacked_line_chart:", default=True),
    st.Page("screens/runs.py", title="Runs", icon=":material/checklist:"),
    st.Page("screens/diagnosis.py", title="Diagnosis", icon=":material/troubleshoot:"),
    st.Page("screens/training.py", title="Training", icon=":material/show_chart:"),
    st.Page("screens/stability.py", title="Match stability", icon=":material/swap_horiz:"),
    st.Page("screens/value.py", title="Query value", icon=":material/bar_chart:"),
    st.Page("screens/masks.py", title="Selection masks", icon=":material/gradient:"),
    st.Page("screens/image.py", title="Matching explorer", icon=":material/image_search:"),
    st.Page("screens/error_types.py", title="Errors", icon=":material/rule:", url_path="errors"),
    st.Page("screens/search.py", title="Search", icon=":material/account_tree:"),
    st.Page("screens/caches_and_runs.py", title="Caches and runs", icon=":material/database:", url_path="storage"),
]
shown = st.navigation(pages, position="top")
st.set_page_config(page_title=f"{shown.title} · Workbench")
shown.run()
