"""Holds the parts that several pages of the dashboard use."""
