"""Save an XCiT to the Hugging Face hub and load it from there, with a model card."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from torch import nn

from ..errors import InputError
from ..preprocessing import Preprocessing
from ..storage import write_safetensors
from .loading import load_weights
from .published import PUBLISHED, find_published
from .sources import HUB_CONFIG, HUB_FILE, read_hub_config

# Without these keys config.json is another library's. XCiT's defaults would build a model that nobody saved.
ARCHITECTURE = ("dim", "depth", "heads", "layer_scale_init", "tokens_norm")
PAPER = "https://arxiv.org/abs/2106.09681"

# What the model card leaves out: the values of these keys, and everything that looks like a path or a URL.
PATH_KEYS = ("run_dir", "root", "resume", "pretrained", "teacher_weights", "urls", "val_urls", "cache_dir")
PATH = re.compile(r"[/\\]|^~")


class HubMixin(nn.Module, PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of huggingface_hub, for an XCiT.

    A folder or repository holds model.safetensors, config.json and README.md (the model card). config.json has the
    keyword arguments of the model, and like timm's `pretrained_cfg` (what it expects of its images) and `label_names`.
    `model_card_kwargs` of `save_pretrained` and `push_to_hub` are passed to `generate_model_card`.
    """

    pretrained_cfg: dict[str, Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model from a folder of `save_pretrained` or from a repository on the hub.

        The arguments are those of huggingface_hub's mixin, and arguments of the model that replace the saved ones.

        Raises:
            InputError: a file or folder is not one of `save_pretrained`, or the weights do not fit. Errors of
                huggingface_hub pass through.
        """
        path = Path(pretrained_model_name_or_path)
        if path.exists() and read_hub_config(path / HUB_FILE) is None:
            raise InputError(f"{path}: no folder of save_pretrained; xcit.load takes run folders and checkpoints, too")
        return super().from_pretrained(path if path.exists() else pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **rest: Any) -> Self:
        """`strict` is ignored: weights of another model always raise an error."""
        # Arguments of huggingface_hub before 1.0, and keys of config.json that are no arguments of the model.
        for other in ("proxies", "resume_download", "pretrained_cfg", "label_names"):
            rest.pop(other, None)
        download = {key: rest.pop(key) for key in ("revision", "cache_dir", "force_download", "local_files_only")}
        token = rest.pop("token")
        source = model_id if Path(model_id).is_dir() else hf_hub_download(model_id, HUB_FILE, token=token, **download)
        accepted = [p for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        needed = [p.name for p in accepted if p.name in ARCHITECTURE or p.default is p.empty]
        if missing := [name for name in needed if name not in rest]:
            raise InputError(
                f"{model_id}: its {HUB_CONFIG} lacks {', '.join(missing)}; create_model(NAME, pretrained=…) knows the "
                "published models"
            )
        model = cls(**rest)
        load_weights(model, source)
        return model.to(map_location).eval()

    def save_pretrained(self, save_directory: str | Path, *, config: Any = None, **rest: Any) -> str | None:
        """Save the model to a folder. The arguments are those of huggingface_hub's mixin."""
        return super().save_pretrained(save_directory, config=config or self.hub_config(), **rest)

    def _save_pretrained(self, save_directory: Path) -> None:
        """huggingface_hub calls it to write the weights. Ours carry a checksum."""
        write_safetensors(save_directory / HUB_FILE, self.state_dict())

    def hub_config(self) -> dict[str, Any]:
        """The content of config.json."""
        cfg = dict(self.pretrained_cfg)
        names = {"label_names": cfg.pop("label_names")} if "label_names" in cfg else {}
        return {**self.init_options(), "pretrained_cfg": cfg, **names}

    def init_options(self) -> dict[str, Any]:
        """The keyword arguments that build this model."""
        assert isinstance(self._hub_mixin_config, dict)
        return self._hub_mixin_config

    def generate_model_card(
        self,
        *,
        repo_id: str = "FOLDER or OWNER/NAME",
        name: str = "XCiT",
        recipe: str | None = None,
        results: Sequence[Mapping[str, Any]] = (),
    ) -> ModelCard:
        """The model card.

        Args:
            repo_id: the folder or repository that the model is saved to.
            name: the name of the model, such as xcit_s12.
            recipe: the configuration of the training run (config.yaml in its run folder). Local paths in it are left
                out of the card.
            results: rows of a results.json.
        """
        header = ModelCardData(
            library_name="xcit",
            license="apache-2.0",
            pipeline_tag="image-classification",
            tags=["xcit", "image-classification", "model_hub_mixin"],
        )
        settings = Preprocessing.of_model(self)
        options = [{"option": key, "value": value} for key, value in self.init_options().items()]
        parameters = sum(p.numel() for p in self.parameters()) / 1e6
        parts = [
            f"---\n{header.to_yaml()}\n---\n# {name}",
            f"A cross-covariance image transformer (XCiT, {PAPER}) with {parameters:.2f} M parameters.",
            f'```python\nimport xcit\n\nmodel = xcit.XCiT.from_pretrained("{repo_id}")\n```',
            f"Images: (B, {settings.channels}, H, W), normalized with mean {settings.mean} and std {settings.std}. "
            "The model accepts any "
            f"size; its training size is {settings.size[0]} × {settings.size[1]} pixels (crop ratio "
            f"{settings.crop_ratio}, {settings.interpolation}).",
            f"## Architecture\n\n{table(options)}",
        ]
        if results:
            measured = [{key: value for key, value in row.items() if key != "checkpoint"} for row in results]
            parts.append(f"## Results\n\n{table(measured)}")
        if recipe:
            shown = without_local_paths(recipe).strip()
            parts.append(f"## Recipe\n\nThe training configuration, without local paths:\n\n```yaml\n{shown}\n```")
        return ModelCard("\n\n".join(parts) + "\n")


def without_local_paths(recipe: str) -> str:
    """The configuration, with LOCAL for every value that names a file, a folder or a server."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError as error:
        raise InputError(f"recipe: not a YAML file ({str(error).splitlines()[0]})") from None
    return yaml.safe_dump(hide_paths(content), sort_keys=False, allow_unicode=True, width=1000)


def hide_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: hide_paths(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [hide_paths(inner, key) for inner in value]
    local = isinstance(value, str) and (key in PATH_KEYS or PATH.search(value)) and not is_public(value)
    return "LOCAL" if local else value


def is_public(name: str) -> bool:
    """Whether it names published weights, or a repository on the hub."""
    tags = {entry.tag for entry in PUBLISHED.values()}
    plain = not re.search(r"[/\\]", name) and (name in tags or find_published(name) is not None)
    return plain or name == "none" or name.startswith(("timm/", "hf-hub:"))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table, with a column for each key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
