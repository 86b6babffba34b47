"""A comparison of runs in FiftyOne."""
