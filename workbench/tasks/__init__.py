"""Whole jobs behind the verbs of the command line."""
