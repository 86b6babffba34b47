"""The record of a run on disk: its folder, query table, detections, decoder states and masks."""
