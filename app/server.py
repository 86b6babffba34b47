"""What `workbench app` runs: the dashboard behind our own check of names and, beyond this machine, of a token."""

import os

import streamlit as st
from starlette.middleware import Middleware

from workbench.services.dashboard import TOKEN_VARIABLE
from workbench.services.guard import Guard
from workbench.services.starter import end_with_starter

end_with_starter()
hosts, port = st.get_option("server.allowedHosts"), st.get_option("server.port")
guard = Middleware(Guard, hosts=hosts, token=os.environ.get(TOKEN_VARIABLE), name=f"dashboard-{port}")
app = st.App("Home.py", middleware=[guard])
