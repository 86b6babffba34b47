"""Measures what single queries are worth: AP drop, gain and quality."""
