"""The store of a run: query table, detections, selection masks."""
