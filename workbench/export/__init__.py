"""A detector for production: one ONNX file, or a plain transformers folder; what does not answer as the detector is not written."""

from workbench.export.agreement import Agreement
from workbench.export.interface import Interface
from workbench.export.onnx_file import export_onnx, read_interface
from workbench.export.transformers_folder import export_transformers

__all__ = ["Agreement", "Interface", "export_onnx", "export_transformers", "read_interface"]
