"""Numbers about detections: AP, error types, calibration, and their intervals."""
