"""Export a trained model to a file that runs without this library, checked against the model before it is kept.

Needs the extra `export` for ONNX. See docs/export.md.
"""

from .files import export

__all__ = ["export"]
