"""Export a trained model to a file that runs without this repository, and check it before it is kept.

    python scripts/export.py checkpoint=runs/mine                                   # model.onnx, for ONNX Runtime
    python scripts/export.py checkpoint=runs/mine format=torch run_dir=exported     # model.pt2, for torch.export.load
    python scripts/export.py checkpoint=runs/mine format=aoti                       # model.pt2, compiled for this CPU
    python scripts/export.py checkpoint=runs/mine quantize=int8 data=folder data.root=~/photos
    python scripts/export.py checkpoint=xcit_small_12_p16_224 data=imagenet data.root=/path images=5000

The checkpoint is a run folder, a file in one, or the name of published weights. The file takes any number of images of
any height and width. It is compared with the model at three sizes and two batch sizes, and on validation images: those
of the run, or those of data= (and data.KEY=, as for eval.py). If it differs too much, it is not kept, and the status
is 1.

Writes to runs/export/TIME, or to run_dir=:

    model.onnx or model.pt2    the export
    model.json                 its input and output, the classes, how an image becomes the input, how an output becomes
                               an answer, and what was compared

An option may be written as key=value or as --key value. See docs/export.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because eval.py, data/ and scripts/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from scripts.options import of_export
    from xcit.start import answer_options

    answer_options(lambda: of_export(__doc__, sys.argv[1:]))

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import yaml
from torch import Tensor

import eval as evaluation
from data.about import counted
from data.datasets import DATASETS
from data.examples import Example, Examples, examples_to_evaluate
from data.views.labelled_crop import pixels
from data.workers import default_workers
from scripts.options import of_export
from xcit.command import guarded, settings_of
from xcit.command.arguments import prepare
from xcit.command.composing import composed, with_home, without_hydra
from xcit.command.printing import print_notices
from xcit.config import EvalConfig
from xcit.config.composition import read_config, with_known
from xcit.engine.progress import Progress
from xcit.engine.run_folder import RunFolder, new_path
from xcit.errors import InputError, print_note
from xcit.export import export
from xcit.export.check import Images
from xcit.export.files import require_usable
from xcit.export.formats import format_named
from xcit.prediction.classifier import load_with_head
from xcit.preprocessing import Preprocessing
from xcit.saved import Saved, read_checkpoint
from xcit.signals import stop_at_signals
from xcit.weights.sources import locate


@guarded
def main() -> None:
    print_notices()
    arguments, of_data = of_export(__doc__, sys.argv[1:])
    folder = RunFolder(new_path(arguments.run_dir, "export"))
    folder.require_free()
    with Progress() as progress, stop_at_signals():
        # Everything that may be refused is, before the images are read.
        path = folder.path / f"model{format_named(arguments.format).suffix}"
        require_usable(path, arguments.format, arguments.quantize, arguments.tolerance)
        progress.begin(f"reading {arguments.checkpoint}")
        saved = read_checkpoint(locate(arguments.checkpoint), evaluation.TABLES)
        require_one_answer(saved, arguments.checkpoint)
        examples = validation(saved, of_data)
        loaded, head = load_with_head(arguments.checkpoint, arguments.weights)
        images: list[Images] = []
        if examples is not None:
            spread = torch.linspace(0, len(examples) - 1, min(arguments.images, len(examples))).round().long()
            batches = spread.split(arguments.batch_size)
            with ThreadPoolExecutor(default_workers()) as pool:
                for batch in progress.track(batches, "reading images"):
                    images += read(examples, batch.tolist(), loaded.preprocessing, pool)
        if not images:
            print_note("no images: only random pixels are compared; data=folder data.root=FOLDER names images")

        progress.begin(f"exporting to {arguments.format}, and checking the file")
        folder.create()
        try:
            found = export(
                loaded,
                path,
                arguments.format,
                preprocessing=arguments.preprocessing == "true",
                quantize=arguments.quantize,
                images=images,
                tolerance=arguments.tolerance,
                head=head,
                origin=arguments.checkpoint,
            )
            folder.describe(yaml.safe_dump(vars(arguments) | {"data": of_data}))
        finally:
            folder.close()  # removes it if nothing was kept
    print(report(path, found["check"]))


def require_one_answer(saved: Saved, checkpoint: str) -> None:
    """Refuse detectors and segmenters before their images are looked for; `load_with_head` refuses them, too."""
    task = saved.config.task.name if saved.config else (saved.weights.task or {}).get("name")
    if task in ("detect", "segment"):
        raise InputError(f"checkpoint={checkpoint}: was trained with task={task}, which cannot be exported")


def validation(saved: Saved, of_data: list[str]) -> Examples | None:
    """The validation images of the run, or those of the data set that was asked for; None if there are none.

    That the images of the run are not at hand is a note, since the export can do without them.
    """
    settings, _ = settings_of(evaluation.__file__)
    raw = with_home(without_hydra(composed(settings, prepare(["checkpoint=x", *of_data], settings))))
    data = read_config(
        EvalConfig, with_known(raw, {"data": saved.config.data if saved.config else None}), evaluation.TABLES
    ).data
    if data is None:
        return None
    try:
        source = DATASETS[data.name](**data.options)
        return examples_to_evaluate(source, saved.weights.classes, of_run=not of_data)
    except InputError as error:
        if of_data:
            raise
        print_note(f"the images of the run are not at hand: {error}")
        return None


def read(
    examples: Examples, numbers: Sequence[int], preprocessing: Preprocessing, pool: ThreadPoolExecutor
) -> list[Images]:
    """A batch of these images; none if no image can be read."""

    def one(example: Example) -> Tensor | None:
        try:
            return pixels(example.image, preprocessing)
        except InputError as error:
            print_note(f"{error}; left out")
        return None

    chosen = [examples[number] for number in numbers]
    found = [
        (image, example) for image, example in zip(pool.map(one, chosen), chosen, strict=True) if image is not None
    ]
    if not found:
        return []
    labels = torch.tensor([example.target for _, example in found]) if examples.target_kind == "class" else None
    return [Images(torch.stack([image for image, _ in found]), labels)]


def report(path: Path, check: dict[str, Any]) -> str:
    """What was written, and how it compares with the model."""
    lines = [
        f"{path}: {path.stat().st_size / 1e6:.1f} MB; its outputs differ from the model's by at most "
        f"{check['difference']:.1e} of the largest one"
    ]
    for key, what in (("same_top1", "class"), ("same_labels", "labels")):
        if check["images"] and key in check:
            lines.append(f"{counted(check['images'], 'image')}: the same {what} for {check[key]}")
    if "top1_before" in check:
        lines.append(f"top-1: {check['top1_before']:.2f} % before, {check['top1_after']:.2f} % after")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
