"""Numbers about a run, computed from its files: AP, match stability, cost, the summary table."""
