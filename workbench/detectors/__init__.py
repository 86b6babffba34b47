"""Detectors: one interface, a file a family, and the registry of families."""
