"""Converts checkpoints to the formats that earlier versions wrote."""

from collections.abc import Mapping
from typing import Any


def as_version_2(content: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a checkpoint to version 2: it has one loss per process as a number, and lacks the newer keys."""
    newer = ("backbone", "preprocessing", "best_weights", "headline", "validated")
    older = {key: value for key, value in content.items() if key not in newer}
    older["format"] = "xcit training state, version 2"
    older["loss_sums"] = [sums.get("loss", 0.0) for sums in content["loss_sums"]]
    return older
