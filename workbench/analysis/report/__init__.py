"""Numbers gathered for tables, reports and FiftyOne."""
