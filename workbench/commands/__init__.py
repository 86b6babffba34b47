"""Verbs of the command line that have sub-verbs, a file each."""
