"""Plotly figures shared by the dashboard and the notebooks; nothing here imports torch or streamlit."""
