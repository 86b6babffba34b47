"""Gathers numbers for tables, reports and FiftyOne."""
