"""Servers that the workbench starts or looks for: the dashboard, FiftyOne's database, and what this machine has."""
