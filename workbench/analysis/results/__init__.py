"""Provides all results about a run at an evaluation, each with one definition and one name in ``derived/``."""
