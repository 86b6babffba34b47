"""Figures, drawn images, report pages and FiftyOne datasets made from the numbers of analysis."""
