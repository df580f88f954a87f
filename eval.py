"""Evaluate a checkpoint across resolutions: the story of one evaluation.

python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000
python eval.py checkpoint=weights.pth model=xcit_s12 data=imagenet data.root=/path 'resolutions=[160,224,320]'
torchrun --nproc-per-node=8 eval.py …
"""

from collections.abc import Mapping
from typing import Any

import hydra
from omegaconf import DictConfig
from torch import nn

import data
from xcit import InputError, create_model, load_weights
from xcit.command import guarded, run
from xcit.config import (
    EvalConfig,
    ModelConfig,
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
from xcit.storage import load_exactly, read_tensors
from xcit.tasks import TASKS

TABLES: Tables = {"model": MODELS, "data": data.DATASETS, "task": TASKS}


def evaluate(config: EvalConfig) -> list[Row]:
    """One evaluation, from checkpoint to report."""
    with distributed.session() as device:
        path = find_checkpoint(config.checkpoint)
        content = read_tensors(path)
        trained = read_config(TrainConfig, content["identity"]["config"], TABLES) if is_run(content) else None

        # What the command line does not say is as it was in training.
        model_config = config.model or (trained and trained.model)
        data_config = config.data or (trained and trained.data)
        if not model_config or not data_config:
            missing = "data" if model_config else "model"
            raise InputError(f"{missing}: must be given, as {path} holds weights alone")
        resolutions = config.resolutions or (trained.resolutions if trained else [data_config.image_size])
        require_patches(model_config, {"resolutions": min(resolutions)})

        classes = content["identity"]["classes"] if trained else None
        images = data.DATASETS[data_config.name](**data_config.options).val(classes)
        task_config = trained.task if trained else TaskConfig(name="classify")
        tasks = {
            weights: load_task(content, weights, str(path), model_config, task_config, len(images.classes)).to(device)
            for weights in chosen_weights(content, config.weights, str(path))
        }

        folder = RunFolder(distributed.from_main(new_path(config.run_dir, "eval")))
        if distributed.is_main():
            folder.create()
            folder.describe(to_yaml(config))
        rows = sweep(
            tasks,
            lambda resolution: data.EvalLoader(
                images,
                data.eval_transform(resolution, config.crop_ratio),
                config.batch_size,
                workers=data_config.workers,
                device=device,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            ),
            resolutions,
            model=model_config.name,
            checkpoint=str(path),
            eval_set=data_config.name,
            crop_ratio=config.crop_ratio,
            device=device,
            precision=config.precision,
        )
        if distributed.is_main():
            write_report(folder.path, rows, trained_at=trained.data.image_size if trained else None)
            print(f"run folder: {folder.path}")
        return rows


def is_run(content: Mapping[str, Any]) -> bool:
    """Whether a file is a checkpoint of one of our runs, rather than weights alone."""
    return content.get("format") == FORMAT


def chosen_weights(content: Mapping[str, Any], wanted: str, origin: str) -> list[str]:
    available = ["raw"] + ["ema"] * bool(is_run(content) and content["ema"])
    if wanted == "both":
        return available
    if wanted not in available:
        raise InputError(f"weights={wanted}: {origin} holds {' and '.join(available)} alone")
    return [wanted]


def load_task(
    content: Mapping[str, Any], weights: str, origin: str, model: ModelConfig, task: TaskConfig, num_classes: int
) -> nn.Module:
    """The task with one set of the checkpoint's weights."""
    module = create_model(model.name, num_classes=num_classes, **model.options)
    if not is_run(content):
        load_weights(module, origin)
    loaded = TASKS[task.name](module, num_classes, **task.options)
    if is_run(content):
        load_exactly(loaded, content["task" if weights == "raw" else "ema"], origin)
    return loaded


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@guarded(data.DataError)
def main(raw: DictConfig) -> None:
    evaluate(read_config(EvalConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, every_key(EvalConfig, TABLES))
