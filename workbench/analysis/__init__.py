"""Numbers computed from the files of a run. Nothing here runs a model."""
