"""Write weights in another format, bit for bit.

    python scripts/convert_weights.py xcit_small_12_p16_224.pth s12.safetensors --to safetensors
    python scripts/convert_weights.py runs/NAME/TIME xcit_small_12_p16_224.pth --to authors --weights ema
    python scripts/convert_weights.py runs/NAME/TIME my_model --to hub

The source is whatever `pretrained=` takes: a file, a run folder, the name of published weights. The target is a new
file, or with --to hub a new folder that `xcit.XCiT.from_pretrained` opens and that can be uploaded as it is.
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
from xcit.composition import section_for
from xcit.models import MODELS
from xcit.storage import load_exactly, read_tensors, write_safetensors, write_tensors
from xcit.weights.formats import to_authors_names, weights_in
from xcit.weights.published import find_published
from xcit.weights.sources import locate

State = Mapping[str, Tensor]

# The file formats: the authors' {"model": …}; timm's bare state dict; safetensors with timm's names, as on the hub.
WRITERS: dict[str, Callable[[Path, State], None]] = {
    "authors": lambda path, state: write_tensors(path, {"model": to_authors_names(state)}),
    "timm": write_tensors,
    "safetensors": write_safetensors,
}


@guarded()
def main() -> None:
    arguments = parse_arguments()
    source, target = arguments.source, Path(arguments.target)
    if target.exists():
        raise InputError(f"{target}: exists already")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target}: its folder does not exist")
    if arguments.to == "safetensors" and target.suffix != ".safetensors":
        raise InputError(f"{target}: must end in .safetensors, by which such a file is known")
    path = locate(source)
    content = read_tensors(path)
    weights = weights_in(content, str(path))
    kind = arguments.weights or ("ema" if "ema" in weights.kinds else "raw")
    state = weights.state(kind)
    if arguments.to == "hub":
        options = arguments.model or model_in(content) or published_model(source)
        if not options:
            raise InputError(f"--model: must be given for --to hub, as {source} does not tell its architecture")
        model = build(options, state, str(path))
        told = card(options["name"], kind, path.absolute()) if is_checkpoint(content) else {"name": options["name"]}
        model.save_pretrained(target, model_card_kwargs={"repo_id": target.name, **told})
    else:
        WRITERS[arguments.to](target, state)
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    print(f"{target}: {len(state)} tensors, {millions:.2f} M numbers ({kind} of {path}), as {arguments.to}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--to", choices=[*WRITERS, "hub"], required=True)
    parser.add_argument("--weights", choices=["raw", "ema"], help="default: the moving average where there is one")
    parser.add_argument(
        "--model",
        type=json_object,
        metavar="JSON",
        help='of --to hub, for a file that does not tell: \'{"name": "xcit_s12", "patch_size": 16}\'',
    )
    return parser.parse_args()


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: must be an object")
    return value


def model_in(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's configuration, if the content is a run's checkpoint."""
    return content["identity"]["config"]["model"] if is_checkpoint(content) else None


def published_model(source: str) -> dict[str, Any] | None:
    published = find_published(source)
    return published.options if published else None


def build(given: Mapping[str, Any], state: State, origin: str) -> XCiT:
    """The XCiT that the weights are for, with them."""
    try:
        options = section_for("model", given, MODELS).model_validate(given)
    except ValidationError as invalid:
        problem = invalid.errors()[0]
        raise InputError(f"--model: {'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}") from None
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    model = create_model(options.entry, num_classes=num_classes, **options.options)
    if not isinstance(model, XCiT):
        raise InputError(f"--to hub: is for XCiT, not for {options.name}")
    load_exactly(model, state, origin)
    return model


def card(name: str, kind: str, checkpoint: Path) -> dict[str, Any]:
    """What the model card is to tell of a run's weights: its recipe, and the results of this very checkpoint."""
    told: dict[str, Any] = {"name": name}
    run = checkpoint.parents[1]
    if (run / "config.yaml").is_file():
        told["recipe"] = (run / "config.yaml").read_text()
    if (run / "results.json").is_file():
        rows = json.loads((run / "results.json").read_text())
        told["results"] = [r for r in rows if (r["weights"], Path(r["checkpoint"]).name) == (kind, checkpoint.name)]
    return told


if __name__ == "__main__":
    main()
