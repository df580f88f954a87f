"""Evaluate a checkpoint across resolutions: the story of one evaluation.

python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000
python eval.py checkpoint=xcit_small_12_p16_384_dist data=imagenet data.root=/path 'resolutions=[224,384]'
torchrun --nproc-per-node=8 eval.py …
"""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

import data
from xcit import InputError, create_model
from xcit.checkpoint import MODEL, is_checkpoint, task_weights
from xcit.command import guarded, run
from xcit.composition import Tables, every_key, read_config, section_for, to_yaml
from xcit.config import EvalConfig, ModelConfig, ResolvedEvalConfig, TaskConfig, TrainConfig
from xcit.engine import distributed
from xcit.engine.run_folder import RunFolder, new_path
from xcit.errors import given_as
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import Row, sweep
from xcit.models import MODELS
from xcit.models.dry_run import dry_run
from xcit.models.fast.inference import ready_for_inference
from xcit.models.variants import named
from xcit.preprocessing import data_settings
from xcit.storage import load_exactly, read_tensors
from xcit.tasks import TASKS
from xcit.weights.formats import Weights, weights_in
from xcit.weights.published import find_published
from xcit.weights.sources import HUB_CONFIG, HUB_FILE, locate

TABLES: Tables = {"model": MODELS, "data": data.DATASETS, "task": TASKS}


def evaluate(config: EvalConfig) -> list[Row]:
    """One evaluation, from checkpoint to report."""
    with distributed.session() as device:
        with given_as("checkpoint"), distributed.main_first():
            path = locate(config.checkpoint)
            found, trained, classes = read_checkpoint(path)
        kinds = list(found.kinds) if config.weights == "both" else [config.weights]
        weights = {kind: found.state(kind) for kind in kinds}
        whole = completed(config, trained, path)
        folder = RunFolder(distributed.from_main(new_path(config.run_dir, "eval")))
        folder.require_free()

        source = data.DATASETS[whole.data.name](**whole.data.options)
        images = source.val(classes)
        task = trained.task if trained else TaskConfig(name="classify")
        tasks = {}
        for name, state in weights.items():
            model = create_model(whole.model.entry, num_classes=len(images.classes), **whole.model.options)
            tasks[name] = TASKS[task.name](model, len(images.classes), **task.options).to(device)
            load_exactly(tasks[name], state, str(path))
            tasks[name].model = ready_for_inference(tasks[name].model)

        settings = data_settings(model)
        rows = sweep(
            tasks,
            lambda resolution: data.EvalLoader(
                images,
                data.EvalTransform(resolution, config.crop_ratio, **settings.preprocessing),
                config.batch_size,
                workers=whole.data.workers,
                device=device,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            ),
            whole.resolutions,
            model=whole.model.name,
            checkpoint=str(path),
            eval_set=whole.data.name,
            crop_ratio=config.crop_ratio,
            device=device,
            precision=config.precision,
        )
        headline = str(next(iter(tasks.values())).headline)
        if distributed.is_main():
            folder.create()
            folder.describe(to_yaml(whole))
            write_report(folder.path, rows, headline, trained.data.image_size if trained else None)
            print(f"run folder: {folder.path}")
        return rows


def read_checkpoint(path: Path) -> tuple[Weights, TrainConfig | None, list[str] | None]:
    """The weights of the task in a file; and its run's configuration and classes, if it is of a run."""
    content = read_tensors(path)
    if is_checkpoint(content):
        trained = read_config(TrainConfig, content["identity"]["config"], TABLES)
        return Weights(str(path), task_weights(content)), trained, content["identity"]["classes"]
    models = weights_in(content, str(path)).kinds
    return Weights(str(path), {kind: as_task(state) for kind, state in models.items()}), None, None


def as_task(state: dict[str, Any]) -> dict[str, Any]:
    return {f"{MODEL}{key}": value for key, value in state.items()}


def completed(config: EvalConfig, trained: TrainConfig | None, path: Path) -> ResolvedEvalConfig:
    """The configuration with model, data and resolutions as they were in training, where it does not say."""
    told = trained.model if trained else model_of(config.checkpoint, path)
    model = config.model or told
    source = config.data or (trained.data if trained else None)
    if not model or not source:
        missing = "data" if model else "model"
        raise InputError(f"{missing}: must be given, as {config.checkpoint} holds weights alone")
    made_for = told.options.get("image_size") if told else None
    resolutions = config.resolutions or (trained.resolutions if trained else [made_for or source.image_size])
    dry_run(model.entry, model.options, {"resolutions": resolutions})
    known = {"model": model, "data": source, "resolutions": resolutions}
    return ResolvedEvalConfig.model_construct(**dict(config) | known)


def model_of(checkpoint: str, path: Path) -> ModelConfig | None:
    """What published weights, or what lies beside those of a hub's folder, tell of the model that they are for."""
    published, beside = find_published(checkpoint), path.with_name(HUB_CONFIG)
    plain: dict[str, Any] | None = None
    if published:
        plain = published.options
    elif checkpoint.startswith("timm/"):
        plain = {"library": "timm", "name": checkpoint.removeprefix("timm/")}
    elif path.name == HUB_FILE and beside.is_file():
        plain = named(json.loads(beside.read_text()))
    if plain is None:
        return None
    options = {key: value for key, value in plain.items() if key not in ("num_classes", "in_chans")}
    return section_for("model", options, MODELS).model_validate(options)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@guarded(data.DataError, data.WorkerKilledError)
def main(raw: DictConfig) -> None:
    evaluate(read_config(EvalConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, every_key(EvalConfig, TABLES))
