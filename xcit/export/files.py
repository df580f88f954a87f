"""Writes an export and, beside it, a JSON file that says how to use it. Nothing is kept that was not checked."""

import json
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ..errors import InputError, warn
from ..models.fast.exported import exported_form
from ..models.fast.inference import fuse_for_inference
from ..models.load import Loaded
from ..prediction.answers import Head
from ..prediction.classifier import load_with_head
from ..preprocessing import Preprocessing
from ..storage import without_nan, write_atomically, write_text
from .check import TOLERANCE, TOLERANCE_INT8, Images, on_images, on_random_pixels, require_agreement
from .formats import FileFormat, Format, format_named
from .program import Exportable, Signature, require_exportable, signature, sizes_to_check
from .quantize import quantize_onnx

Quantize = Literal["none", "int8"]
FEW = 100
"""Fewer images say little: one of them is more than 1 %."""


def export(
    source: str | Path | Loaded,
    path: Path,
    format: Format = "onnx",  # noqa: A002  # the name that users type
    *,
    preprocessing: bool = True,
    quantize: Quantize = "none",
    images: Sequence[Images] = (),
    tolerance: float | None = None,
    weights: str | None = None,
    head: Head | None = None,
    origin: str | None = None,
) -> dict[str, Any]:
    """Export a trained model to `path`, and describe it in a JSON file of this name beside it.

    The export takes any number of images of any size above a patch. It is compared with the model at three sizes and
    two batch sizes, and on `images`. If it differs too much, no file is written.

    Args:
        source: a run folder, a checkpoint or a name, as `xcit.load` takes them; or what `xcit.load` returns, with
            `head`.
        path: the file, which ends in .onnx for ONNX and in .pt2 otherwise.
        format: "onnx"; "torch" for a program of torch.export; "aoti" for code that AOTInductor compiled for this CPU.
        preprocessing: whether the export takes pixels and normalizes them itself. Resizing is never part of it.
        quantize: "int8" for weights and activations of 8 bits; for ONNX, and only with `images`.
        images: batches of them, as `Preprocessing.pixels` makes them.
        tolerance: the largest difference of an output, relative to the largest one; for int8 the largest share of
            images that get another class or other labels, if there are any. The default is 1e-4, for int8 0.05.
        weights: "raw" or "ema", for a run. The default is the better one in its last validation.
        head: how the outputs of what `xcit.load` returned are read, for the comparison and for the JSON file. Only
            features need none. Otherwise it is read from the source.
        origin: where the weights are from, for the JSON file. The default is the source.

    Returns:
        What the JSON file says.

    Raises:
        InputError: something cannot be exported in this way, or is missing for it.
        DisagreementError: the export differs from the model by more than the tolerance.
    """
    file_format = format_named(format)
    int8 = quantize == "int8"
    require_usable(path, format, quantize, tolerance)
    if int8 and not images:
        raise InputError("quantize=int8: needs images to measure the range of the activations, and to compare results")
    if not isinstance(source, Loaded):
        if head is not None:
            raise InputError("head: is read from the source; leave it out")
        origin = origin or str(source)
        loaded, head = load_with_head(source, weights)
    elif weights is not None:
        raise InputError(f"weights={weights}: is for a source that is not loaded yet")
    elif head is None and getattr(source.model, "num_classes", False):
        raise InputError("head: must be given with a loaded model; or give the run folder, file or name, and no head")
    else:
        loaded = source
    count = sum(len(batch.pixels) for batch in images)
    if 0 < count < FEW:
        use = "int8 is calibrated and compared" if int8 else "the export is compared"
        warn(f"{use} on {count} {'image' if count == 1 else 'images'}, which say little; {FEW} or more are better")
    model = require_exportable(loaded.model, loaded.preprocessing)
    # The reference is what predictions are made with. The exported one runs without our kernels.
    reference = Exportable(fuse_for_inference(model), loaded.preprocessing, preprocessing)
    exportable = Exportable(exported_form(model), loaded.preprocessing, preprocessing)
    signed = signature(exportable, model.patch_size)
    if tolerance is None:
        tolerance = TOLERANCE_INT8 if int8 else TOLERANCE
    with TemporaryDirectory() as folder:
        aside = write_file(exportable, signed, file_format, Path(folder), model.patch_size)
        if int8:
            aside = quantize_onnx(aside, [reference.takes(batch.pixels) for batch in images])
        run = file_format.open(aside)
        random, compared = on_random_pixels(reference, run, model.patch_size)
        on_given = on_images(reference, run, images, head)
        require_agreement(random, on_given, tolerance, int8=int8)
        description = {
            "file": path.name,
            "format": format,
            "precision": "int8" if int8 else "fp32",
            "checkpoint": origin,
            "input": signed.input,
            "output": signed.output,
            "classes": loaded.classes,
            "answers": head.as_dict() if head else None,
            "preprocessing": loaded.preprocessing.as_dict(),
            "steps": steps(loaded.preprocessing, preprocessing),
            "check": {
                **compared,
                "tolerance": tolerance,
                "difference": max(random.difference, on_given.difference),
                "images": on_given.images,
                **on_given.same_answers(),
                **on_given.accuracy(),
            },
            "versions": {name: metadata.version(name) for name in ("torch", *file_format.packages)},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("rb") as written:
            write_atomically(path, lambda file: shutil.copyfileobj(written, file))
    write_text(path.with_suffix(".json"), json.dumps(without_nan(description), indent=1, ensure_ascii=False) + "\n")
    return description


def write_file(
    exportable: Exportable, signed: Signature, file_format: FileFormat, folder: Path, patch_size: int
) -> Path:
    """Write the export to a file in the folder, unchecked."""
    path = folder / f"export{file_format.suffix}"
    # A size that the patch does not divide, so that torch.export does not take the padding for constant.
    example = exportable.random(2, sizes_to_check(exportable.preprocessing.size, patch_size)[-1])
    file_format.write(exportable, example, signed, path)
    return path


def require_usable(path: Path, format: str, quantize: str, tolerance: float | None) -> None:  # noqa: A002
    """Refuse what cannot be exported, before work begins."""
    file_format = format_named(format)
    if path.suffix != file_format.suffix:
        raise InputError(f"{path}: must end in {file_format.suffix} with format={format}")
    if quantize not in ("none", "int8"):
        raise InputError(f"quantize={quantize}: must be none or int8")
    if quantize == "int8" and format != "onnx":
        raise InputError(f"quantize=int8: is for format=onnx, not for format={format}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise InputError(f"tolerance={tolerance}: must be greater than 0 and less than 1")
    file_format.require()


def steps(preprocessing: Preprocessing, normalizes: bool) -> list[str]:
    """How a picture becomes the input, in words."""
    height, width = preprocessing.size
    grown = preprocessing.resized_size(height, width)
    how = {
        "crop": f"until it covers {grown[0]} × {grown[1]} pixels (height × width), with its aspect ratio",
        "letterbox": f"until it fits into {grown[0]} × {grown[1]} pixels (height × width), with its aspect ratio",
        "squash": f"to {grown[0]} × {grown[1]} pixels (height × width), without regard to its aspect ratio",
        "shortest": f"until its shorter side has {height} pixels, or its longer side {width} if that is smaller",
    }[preprocessing.resize]
    low, high = (f"{bound:g}" for bound in preprocessing.bounds)
    resized = [
        f"decode the image to {preprocessing.channels} channels with values from {low} to {high}, upright",
        f"resize it {how}, {preprocessing.interpolation} with antialiasing",
    ]
    if preprocessing.resize != "shortest":
        missing = "; pad with the mean where it is smaller" if preprocessing.resize == "letterbox" else ""
        resized.append(f"cut out the center of {height} × {width} pixels{missing}")
    if normalizes:
        return [*resized, "stack the images to (batch, height, width, channels); the export normalizes them"]
    return [
        *resized,
        f"scale the values to (value - {low}) / ({high} - {low}), subtract mean, divide by std, for each channel",
        "stack the images to (batch, channels, height, width) in fp32",
    ]
