"""Convert weights to another file format. Their values stay the same to the bit.

    python scripts/convert_weights.py xcit_small_12_p16_224.pth s12.safetensors --to safetensors
    python scripts/convert_weights.py runs/NAME/TIME xcit_small_12_p16_224.pth --to authors --weights ema
    python scripts/convert_weights.py runs/NAME/TIME my_model --to hub
    python scripts/convert_weights.py runs/DINO student.pth --to timm --network student
    python scripts/convert_weights.py maskrcnn_xcit_small_12_p16 keys.csv --to keys

The source is anything that `pretrained=` accepts: a file, a run folder, a published name. The target is a new file.
With --to hub it is a new folder, which `xcit.XCiT.from_pretrained` opens and which can be uploaded unchanged.
With --to keys it is a table of the keys in a published detector or segmenter, the authors' and ours. The other formats
get only its backbone.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from xcit import InputError, XCiT, create_model
from xcit.checkpoint import is_checkpoint
from xcit.command import ArgumentParser, guarded
from xcit.config.composition import describe as describe_problem
from xcit.config.composition import section_for
from xcit.credentials import without_credentials
from xcit.models import MODELS
from xcit.storage import csv_text, load_exactly, read_tensors, write_safetensors, write_tensors, write_text
from xcit.weights.dense import is_dense, key_table
from xcit.weights.formats import Weights, to_authors_names
from xcit.weights.loading import describe, weights_at
from xcit.weights.published import find_published
from xcit.weights.sources import locate

State = Mapping[str, Tensor]

# The authors' format is {"model": …}, timm's is a bare state dict. safetensors has timm's names, as on the hub.
WRITERS: dict[str, Callable[[Path, State], None]] = {
    "authors": lambda path, state: write_tensors(path, {"model": to_authors_names(state)}),
    "timm": write_tensors,
    "safetensors": write_safetensors,
}


@guarded
def main() -> None:
    # Check the target before the source is read or downloaded.
    arguments = parse_arguments()
    source, target = arguments.source, Path(arguments.target)
    if target.exists():
        raise InputError(f"{target}: exists already")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: its folder does not exist")
    if arguments.to in ("authors", "timm") and target.suffix == ".safetensors":
        raise InputError(f"{target}: must end in .pth with --to {arguments.to}; --to safetensors writes this format")
    if arguments.to == "safetensors" and target.suffix != ".safetensors":
        raise InputError(f"{target}: must end in .safetensors")
    # Read the weights.
    path = locate(source)
    content = read_tensors(path)
    weights = weights_at(path, content, arguments.network)
    if not arguments.weights:
        weights.warn_of_lag()
    kind = arguments.weights or weights.better()
    state = weights.state(kind)
    # Write them, for the hub as a model with its card.
    if arguments.to == "keys":
        if not is_dense(content):
            raise InputError(f"--to keys: is for published detectors and segmenters; {source} is none")
        rows = key_table(content, str(path))
        write_text(target, csv_text(rows))
        unused = [row["authors"] for row in rows if not row["ours"]]
        print(f"{target}: {len(rows)} keys, {len(unused)} of them without a place in ours")
        return
    if arguments.to == "hub":
        options = arguments.model or model_in(content) or published_model(source)
        if not options:
            raise InputError(f"--model: must be given for --to hub, as {source} does not contain its architecture")
        model = build(options, state, weights)
        facts = card(options["name"], kind, path.absolute()) if is_checkpoint(content) else {"name": options["name"]}
        model.save_pretrained(target, model_card_kwargs={"repo_id": target.name, **facts})
    else:
        WRITERS[arguments.to](target, state)
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    print(f"{target}: {len(state)} tensors, {millions:.2f} M numbers ({kind} of {path}), as {arguments.to}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("source", help="a file, a run folder or a published name")
    parser.add_argument("target", help="a new file, or a new folder with --to hub")
    parser.add_argument("--to", choices=[*WRITERS, "hub", "keys"], required=True, help="the format of the target")
    parser.add_argument(
        "--weights", choices=["raw", "ema"], help="default: the better of raw and EMA in the run's last validation"
    )
    parser.add_argument(
        "--network", choices=["teacher", "student"], help="of a DINO run or file; default: the teacher, as everywhere"
    )
    parser.add_argument(
        "--model",
        type=json_object,
        metavar="JSON",
        help='for --to hub, if the source has no architecture: \'{"name": "xcit_s12", "patch_size": 16}\'',
    )
    return parser.parse_args()


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: must be an object")
    return value


def model_in(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's configuration in a run's checkpoint; None for other files."""
    return content["identity"]["config"]["model"] if is_checkpoint(content) else None


def published_model(source: str) -> dict[str, Any] | None:
    published = find_published(source)
    return published.options if published else None


def build(given: Mapping[str, Any], state: State, weights: Weights) -> XCiT:
    """An XCiT of this configuration, with this kind of the weights."""
    section = section_for("model", given, MODELS)
    try:
        options = section.model_validate(given)
    except ValidationError as invalid:
        raise InputError(f"--model: {describe_problem(invalid, section, given)}") from None
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    model = create_model(options.entry, num_classes=num_classes, **options.options)
    if not isinstance(model, XCiT):
        raise InputError(f"--to hub: supports XCiT only, not {options.name}")
    load_exactly(model, state, weights.origin)
    describe(model, weights)
    return model


def card(name: str, kind: str, checkpoint: Path) -> dict[str, Any]:
    """The facts for the model card of a run's weights: the run's configuration, and the results of this checkpoint."""
    facts: dict[str, Any] = {"name": name}
    run = checkpoint.parents[1]
    if (run / "config.yaml").is_file():
        facts["recipe"] = without_credentials((run / "config.yaml").read_text())  # older runs saved passwords
    if (run / "results.json").is_file():
        rows = json.loads((run / "results.json").read_text())
        facts["results"] = [r for r in rows if (r["weights"], Path(r["checkpoint"]).name) == (kind, checkpoint.name)]
    return facts


if __name__ == "__main__":
    main()
