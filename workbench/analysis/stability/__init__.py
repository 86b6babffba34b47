"""Measures how stable the matching of queries and targets is, over steps, layers and seeds."""
