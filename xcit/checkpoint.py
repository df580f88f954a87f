"""The checkpoint format, and functions that extract weights from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import InputError, choose

FORMAT = "xcit training state, version 3"
FORMAT_1, FORMAT_2 = "xcit training state, version 1", "xcit training state, version 2"
"""Of older runs. `upgraded` converts version 2."""
COMMIT_OF_FORMAT_1 = "755edd0"
"""The last commit that writes and reads version 1."""
KEYS = ("task", "ema", "optimizer", "scaler", "step", "epoch", "best", "identity")
"""What a checkpoint of version 2 or 3 has at least."""
LAST = Path("checkpoints", "last.pt")
"""The checkpoint in a run folder from which the run continues; the folder's path stands for it."""


LOWER_IS_BETTER = ("loss", "mae", "rmse")
"""The metrics whose lower values are better; of all others the higher ones are."""
NO_PERCENTAGES = (*LOWER_IS_BETTER, "r2")
"""The metrics that are printed with four significant digits; all others with two decimals."""
LAG = 0.1
"""The EMA lags behind the raw weights if its headline metric is worse by more than this share of theirs."""


def is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether it is a checkpoint of one of our runs, of any version: its weights can be read."""
    return str(content.get("format")).startswith(FORMAT.partition(",")[0])


def upgraded(content: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """A run's checkpoint in the current format. `origin` names it in the errors.

    Raises:
        InputError: it is not a checkpoint, or one of a version that this commit does not read.
    """
    version = content.get("format")
    if version == FORMAT_1:
        raise InputError(
            f"{origin}: is a checkpoint of version 1; commit {COMMIT_OF_FORMAT_1} of this repository evaluates and "
            "resumes it, and pretrained= and xcit.load_weights take its weights"
        )
    if version not in (FORMAT, FORMAT_2):
        raise InputError(
            f"{origin}: not a checkpoint that this version reads (its format is {version!r}, not {FORMAT!r})"
        )
    identity = content.get("identity")
    missing = [key for key in KEYS if key not in content]
    missing += [
        f"identity.{key}" for key in ("config", "classes") if not isinstance(identity, Mapping) or key not in identity
    ]
    if missing:
        raise InputError(f"{origin}: not a complete checkpoint of a run (it lacks {', '.join(missing)})")
    if version == FORMAT_2:
        # Version 2 has one loss, and neither "backbone" nor "preprocessing". A resumed run sets both itself.
        return {**content, "loss_sums": [{"loss": total} for total in content.get("loss_sums", [0.0])]}
    return content


def task_weights(content: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The weights of the task: "raw", as trained, and "ema", their moving average, if the run kept one."""
    return {"raw": content["task"]} | ({"ema": content["ema"]} if content["ema"] else {})


def backbone_weights(content: Mapping[str, Any], network: str | None = None) -> dict[str, dict[str, Tensor]]:
    """The weights of the task's backbone alone, by the model's own names: what others load.

    network: another one of the task's networks, as "student"; see `Task.networks`.
    """
    part = content.get("backbone", "model")
    if network is not None:
        part = choose(content.get("networks", {"model": part}), network, "network")
    prefix = f"{part}."
    return {
        kind: {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for kind, weights in task_weights(content).items()
    }


def merit(metric: str, value: float) -> float:
    """A number that is higher for a better value of the metric."""
    return -value if metric in LOWER_IS_BETTER else value


def shown(metric: str, value: float) -> str:
    """The value as it is printed."""
    return f"{value:.4g}" if metric in NO_PERCENTAGES else f"{value:.2f}"


def better_weights(validated: Mapping[str, float], headline: str) -> str:
    """ "raw" or "ema": the weights with the better headline metric; "ema" if both are equal.

    validated: the metric of each, as the checkpoint's "validated" holds it.
    """
    return max(
        (kind for kind in ("ema", "raw") if kind in validated), key=lambda kind: merit(headline, validated[kind])
    )


def describe_lag(validated: Mapping[str, float], headline: str) -> str | None:
    """What to tell the user if the EMA lags clearly behind the raw weights; None if it does not."""
    if "ema" not in validated:
        return None
    lag = merit(headline, validated["raw"]) - merit(headline, validated["ema"])
    if lag <= LAG * abs(validated["raw"]):
        return None
    return (
        f"the moving average lags behind the raw weights: {headline} {shown(headline, validated['ema'])} instead of "
        f"{shown(headline, validated['raw'])} in the last validation; a lower train.ema_decay lets it follow faster"
    )
