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

from torch import Tensor

from xcit import InputError, XCiT, create_model, load_weights
from xcit.checkpoint import is_checkpoint
from xcit.command import guarded
from xcit.models.published import find_published
from xcit.models.sources import locate
from xcit.models.weights import to_authors_names, weights_in
from xcit.storage import read_tensors, write_safetensors, write_tensors

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
    path = locate(source)
    content = read_tensors(path)
    weights = weights_in(content, str(path))
    kind = arguments.weights or ("ema" if "ema" in weights.kinds else "raw")
    state = weights.state(kind)
    if arguments.to == "hub":
        options = arguments.model or model_in(content) or published_model(source)
        if not options:
            raise InputError(f"--model: must be given for --to hub, as {source} does not tell its architecture")
        write_hub_folder(target, state, options, kind, path.parents[1] if is_checkpoint(content) else None)
    else:
        WRITERS[arguments.to](target, state)
    millions = sum(tensor.numel() for tensor in state.values()) / 1e6
    print(f"{target}: {len(state)} tensors, {millions:.2f} M numbers ({kind} of {path}), as {arguments.to}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--to", choices=[*WRITERS, "hub"], required=True)
    parser.add_argument("--weights", choices=["raw", "ema"], help="default: the moving average where there is one")
    parser.add_argument(
        "--model",
        type=json.loads,
        metavar="JSON",
        help='of --to hub, for a file that does not tell: \'{"name": "xcit_s12", "patch_size": 16}\'',
    )
    return parser.parse_args()


def model_in(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model's configuration, if the content is a run's checkpoint."""
    return content["identity"]["config"]["model"] if is_checkpoint(content) else None


def published_model(source: str) -> dict[str, Any] | None:
    published = find_published(source)
    if not published:
        return None
    return {"name": published.model, "patch_size": published.patch_size, "image_size": published.input_size}


def write_hub_folder(target: Path, state: State, options: Mapping[str, Any], kind: str, run: Path | None) -> None:
    """Weights, config.json and a card, with the recipe and the results where they come from a run."""
    options = {key: value for key, value in options.items() if key != "library"}
    name = options.pop("name")
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    model = create_model(name, num_classes=num_classes, **options)
    if not isinstance(model, XCiT):
        raise InputError(f"--to hub: is for XCiT, not for {name}")
    load_weights(model, state)
    card: dict[str, Any] = {"name": name}
    if run and (run / "config.yaml").is_file():
        card["recipe"] = (run / "config.yaml").read_text()
    if run and (run / "results.json").is_file():
        rows = json.loads((run / "results.json").read_text())
        card["results"] = [row for row in rows if row["weights"] == kind]
    model.save_pretrained(target, model_card_kwargs=card)


if __name__ == "__main__":
    main()
