"""The workbench's panel and operator, as FiftyOne's App loads them."""

from typing import Any

from workbench.views.fiftyone.panel import MatchingPanel, OpenInDashboard


def register(plugin: Any) -> None:
    """Called by FiftyOne."""
    plugin.register(MatchingPanel)
    plugin.register(OpenInDashboard)
