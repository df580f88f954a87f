"""Evaluate a checkpoint across resolutions: the story of one evaluation.

python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000
python eval.py checkpoint=weights.pth model=xcit_s12 data=imagenet data.root=/path 'resolutions=[160,224,320]'
torchrun --nproc-per-node=8 eval.py …
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

import data
from xcit import InputError, create_model
from xcit.command import guarded, run
from xcit.config import (
    EvalConfig,
    ResolvedEvalConfig,
    Tables,
    TaskConfig,
    TrainConfig,
    every_key,
    read_config,
    require_patches,
    to_yaml,
)
from xcit.engine import distributed
from xcit.engine.run_folder import RunFolder, find_checkpoint, new_path
from xcit.engine.state import FORMAT
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import Row, sweep
from xcit.models import MODELS
from xcit.models.weights import state_dict_of, to_timm_names
from xcit.storage import load_exactly, read_tensors
from xcit.tasks import TASKS

TABLES: Tables = {"model": MODELS, "data": data.DATASETS, "task": TASKS}


def evaluate(config: EvalConfig) -> list[Row]:
    """One evaluation, from checkpoint to report."""
    with distributed.session() as device:
        path = find_checkpoint("checkpoint", config.checkpoint)
        found, trained, classes = read_checkpoint(path)
        weights = choose_weights(found, config.weights, path)
        whole = completed(config, trained, path)
        folder = RunFolder(distributed.from_main(new_path(config.run_dir, "eval")))
        folder.require_free()

        source = data.DATASETS[whole.data.name](**whole.data.options)
        images = source.val(classes)
        task = trained.task if trained else TaskConfig(name="classify")
        tasks = {}
        for name, state in weights.items():
            model = create_model(whole.model.name, num_classes=len(images.classes), **whole.model.options)
            tasks[name] = TASKS[task.name](model, len(images.classes), **task.options).to(device)
            load_exactly(tasks[name], state, str(path))

        if distributed.is_main():
            folder.create()
            folder.describe(to_yaml(whole))
        rows = sweep(
            tasks,
            lambda resolution: data.EvalLoader(
                images,
                data.eval_transform(resolution, config.crop_ratio),
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
            write_report(folder.path, rows, headline, trained.data.image_size if trained else None)
            print(f"run folder: {folder.path}")
        return rows


def read_checkpoint(path: Path) -> tuple[dict[str, Any], TrainConfig | None, list[str] | None]:
    """The weights in a file, of the task and by kind; and its run's configuration and classes, if it is of a run."""
    content = read_tensors(path)
    if content.get("format") != FORMAT:
        state = to_timm_names(state_dict_of(content, str(path)))
        return {"raw": {f"model.{key}": value for key, value in state.items()}}, None, None
    weights = {"raw": content["task"]}
    if content["ema"]:
        weights["ema"] = content["ema"]
    return weights, read_config(TrainConfig, content["identity"]["config"], TABLES), content["identity"]["classes"]


def choose_weights(found: dict[str, Any], wanted: str, path: Path) -> dict[str, Any]:
    if wanted == "both":
        return found
    if wanted not in found:
        raise InputError(f"weights={wanted}: {path} holds {' and '.join(found)} alone")
    return {wanted: found[wanted]}


def completed(config: EvalConfig, trained: TrainConfig | None, path: Path) -> ResolvedEvalConfig:
    """The configuration with model, data and resolutions as they were in training, where it does not say."""
    model = config.model or (trained.model if trained else None)
    source = config.data or (trained.data if trained else None)
    if not model or not source:
        missing = "data" if model else "model"
        raise InputError(f"{missing}: must be given, as {path} holds weights alone")
    resolutions = config.resolutions or (trained.resolutions if trained else [source.image_size])
    require_patches(model, {"resolutions": min(resolutions)})
    known = {"model": model, "data": source, "resolutions": resolutions}
    return ResolvedEvalConfig.model_construct(**dict(config) | known)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@guarded(data.DataError)
def main(raw: DictConfig) -> None:
    evaluate(read_config(EvalConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, every_key(EvalConfig, TABLES))
