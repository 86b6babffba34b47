"""Exports a student as one ONNX file or as a plain transformers folder; each is checked against the detector before it is written."""
