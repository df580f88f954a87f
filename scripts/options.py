"""The options of scripts that take a trained model. This file imports no torch, so that mistakes are told at once."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from xcit.command import ArgumentParser
from xcit.errors import InputError, did_you_mean

PREDICTION_FORMATS = ("json", "jsonl", "csv", "parquet")
SMALLEST_TILE = 32
FEATURES = ("class_token", "class_and_mean")
"""What embed.py writes: see `xcit.evaluation.features.Kind`."""
PAGE_PIXELS, PAGE_MEGABYTES = 100_000_000, 50
"""Limits of an image on the page of demo.py. Its pixels are decoded in the memory of the server."""


def of_predict(text: str | None, typed: Sequence[str]) -> argparse.Namespace:
    """The options of predict.py. text: its help."""
    parser = ArgumentParser(text)
    parser.add_argument("images", type=Path, nargs="+", help="image files, folders of images, and patterns")
    add = parser.add_argument
    add_checkpoint(parser)
    add("--run_dir", help="the folder that is written; default: runs/predict/TIME")
    add(
        "--resolution",
        type=int,
        help="image size in pixels; for detect and segment the shorter side; default: that of the run",
    )
    add("--format", default="json", help=f"{', '.join(PREDICTION_FORMATS)}, or several with commas; default: json")
    add("--contact_sheet", choices=("true", "false"), default="true", help="whether it is drawn; default: true")
    add("--top", type=int, default=5, help="classify, multilabel: number of classes of an image; default: 5")
    add("--score", type=float, default=0.5, help="detect: lowest score of an object that is drawn; default: 0.5")
    add(
        "--tile",
        type=int,
        default=0,
        help="detect, segment: side of the tiles of a large image in pixels; default: 0, none",
    )
    add("--overlap", type=int, help="of neighboring tiles in pixels; default: a quarter of the tile")
    add("--overlays", choices=("true", "false"), help="whether each image is drawn; default: for detect and segment")
    add("--batch_size", type=int, default=32, help="images per batch, not for detect and segment; default: 32")
    add("--data.max_pixels", dest="max_pixels", type=int, help="larger images are left out; default: Pillow's limit")
    arguments = parser.parse_intermixed_args(as_options(typed, parser))
    require_checkpoint(arguments)
    require_positive(arguments, "resolution", "top", "batch_size", "max_pixels")
    if not 0 <= arguments.score <= 1:
        raise InputError(f"score={arguments.score}: must be 0 to 1")
    if arguments.tile and arguments.tile < SMALLEST_TILE:
        raise InputError(f"tile={arguments.tile}: must be 0, for none, or at least {SMALLEST_TILE}")
    if arguments.overlap is None:
        arguments.overlap = arguments.tile // 4
    elif not 0 <= arguments.overlap < max(1, arguments.tile):
        raise InputError(f"overlap={arguments.overlap}: must be at least 0 and less than tile={arguments.tile}")
    return arguments


def of_export(text: str | None, typed: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of export.py, and those of the data set, as Hydra reads them. text: its help."""
    given = [argument.removeprefix("--") for argument in typed]
    of_data = [argument for argument in given if argument.startswith(("data=", "data."))]
    parser = ArgumentParser(text)
    add = parser.add_argument
    add_checkpoint(parser)
    add("--format", default="onnx", help="onnx (default), torch or aoti")
    add("--run_dir", help="the folder that is written; default: runs/export/TIME")
    add("--preprocessing", choices=("true", "false"), default="true", help="whether the export normalizes pixels")
    add("--quantize", default="none", help="none (default), or int8 for format=onnx")
    add("--tolerance", type=float, help="see docs/export.md; default: 1e-4 of the largest output; int8: 0.05")
    add("--images", type=int, default=1000, help="validation images that are compared, at most; default: 1000")
    add("--batch_size", type=int, default=16, help="of those images; default: 16")
    own = [argument for argument in typed if argument.removeprefix("--") not in of_data]
    arguments = parser.parse_args(as_options(own, parser))
    require_checkpoint(arguments)
    require_positive(arguments, "images", "batch_size")
    return arguments, of_data


def of_embed(text: str | None, typed: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of embed.py. text: its help."""
    parser = ArgumentParser(text)
    parser.add_argument("model", help="a run folder, a checkpoint or a name of published weights")
    parser.add_argument("images", type=Path, nargs="+", help="image files, folders of images, and patterns")
    parser.add_argument("--output", type=Path, default=Path("features.npz"), help="file to write: .npz or .parquet")
    parser.add_argument("--features", choices=FEATURES, default=FEATURES[0], help=f"default: {FEATURES[0]}")
    parser.add_argument("--resolution", type=int, help="image size in pixels; default: the training size")
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch; default: 64")
    arguments = parser.parse_args(typed)
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size={arguments.batch_size}: must be at least 1")
    return arguments


def of_show_attention(text: str | None, typed: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of show_attention.py. text: its help."""
    parser = ArgumentParser(text)
    parser.add_argument("model", help="a run folder, a checkpoint, a name of published weights, or timm/NAME")
    parser.add_argument("images", type=Path, help="an image file, a folder of images, or a video")
    parser.add_argument("--resolution", type=int, help="image size in pixels; default: the training size")
    parser.add_argument("--mass", type=float, help="show the fewest patches with this share of the attention: 0.6")
    parser.add_argument("--output", type=Path, help="file of the picture or video, or the folder of the pictures")
    arguments = parser.parse_args(typed)
    if arguments.mass is not None and not 0 < arguments.mass < 1:
        raise InputError(f"--mass={arguments.mass}: must be greater than 0 and less than 1")
    return arguments


def of_demo(text: str | None, typed: Sequence[str]) -> argparse.Namespace:
    """The options of demo.py. text: its help."""
    parser = ArgumentParser(text)
    add = parser.add_argument
    add_checkpoint(parser)
    add("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, for this machine alone")
    add("--port", type=int, default=7860, help="0 takes a free one; default: 7860")
    add("--largest", type=int, help="largest resolution; default: 4 × the run's, or less if an image takes too long")
    add(
        "--max_megabytes",
        type=int,
        default=PAGE_MEGABYTES,
        help=f"larger files are refused; default: {PAGE_MEGABYTES}",
    )
    add("--data.max_pixels", dest="max_pixels", type=int, default=PAGE_PIXELS, help="larger images are refused")
    arguments = parser.parse_args(as_options(typed, parser))
    require_checkpoint(arguments)
    require_positive(arguments, "largest", "max_megabytes", "max_pixels")
    return arguments


def add_checkpoint(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a run folder, a checkpoint or a name of published weights")
    better = "default: the better of raw and EMA in the run's last validation"
    parser.add_argument("--weights", choices=("raw", "ema"), help=better)


def require_checkpoint(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint is None:
        raise InputError("checkpoint: must be given: a run folder, a checkpoint or a name of published weights")


def require_positive(arguments: argparse.Namespace, *keys: str) -> None:
    """Refuse numbers below 1 for options that are given."""
    for key in keys:
        value = getattr(arguments, key)
        if value is not None and value < 1:
            raise InputError(f"{key}={value}: must be at least 1")


def as_options(typed: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The arguments with --key=value for key=value. A file of such a name is not meant."""
    keys = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    keys.remove("help")
    return [as_option(argument, keys) for argument in typed]


def as_option(argument: str, keys: Sequence[str]) -> str:
    key = re.match(r"(\w[\w.]*)=", argument)
    if key is None or Path(argument).exists():
        return argument
    if key[1] not in keys:
        raise InputError(f"{argument}: unknown option{did_you_mean(key[1], keys)} (one of {', '.join(keys)})")
    return f"--{argument}"
