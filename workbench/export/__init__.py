"""A student leaves: as one ONNX file or as a plain transformers folder, each checked against the detector before it is written."""
