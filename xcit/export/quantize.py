"""int8 for ONNX files: ONNX Runtime's static quantization, calibrated on images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .formats import needed, quiet


def quantize_onnx(path: Path, batches: Sequence[Tensor]) -> Path:
    """Quantize the products and convolutions of an ONNX file that have weights. Returns the new file, beside it.

    Weights get a scale for each channel. The products within attention, softmax and norms stay in fp32.

    Args:
        batches: inputs, from which the ranges of the activations are measured.
    """
    needed("onnxruntime")
    from onnxruntime import quantization  # here, because only this function needs it

    prepared, quantized = (path.with_name(f"{name}{path.suffix}") for name in ("prepared", "quantized"))
    with quiet():
        quantization.shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        name, nodes = weighted_products(prepared)
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            Batches(name, batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=nodes,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        )
    return quantized


def weighted_products(path: Path) -> tuple[str, list[str]]:
    """The name of the input, and the nodes that multiply activations by weights."""
    graph = needed("onnx").load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return graph.input[0].name, [node.name for node in products if node.input[1] in weights]


class Batches:
    """Yields the inputs to ONNX Runtime's calibration (its CalibrationDataReader)."""

    def __init__(self, name: str, batches: Sequence[Tensor]) -> None:
        self.name, self.left = name, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.left, None)
        return None if batch is None else {self.name: np.ascontiguousarray(batch.numpy())}
