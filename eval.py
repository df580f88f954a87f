"""Evaluate a checkpoint across resolutions: the story of one evaluation.

python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000-123456
python eval.py checkpoint=xcit_small_12_p16_384_dist data=imagenet data.root=/path 'resolutions=[224,384]'
python eval.py checkpoint=runs/mine evaluate=knn       # or linear, retrieval: the frozen features of the backbone
torchrun --nproc-per-node=8 eval.py …
"""

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(__file__)

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

from data.datasets import DATASETS
from data.examples import DataSource, Examples, examples_to_evaluate
from data.loader import EvalLoader
from data.start_up import data_facts, warn_of_other_split
from data.views import VIEWS
from xcit import create_model, summary
from xcit.checkpoint import backbone_weights, is_checkpoint, task_weights, upgraded
from xcit.command import guarded, run
from xcit.config import EvalConfig, ResolvedEvalConfig, TrainConfig
from xcit.config.composition import is_part, make_tables, read_config, section_for, to_yaml, with_known, without_parts
from xcit.config.sections import DataConfig, ModelConfig, TaskConfig
from xcit.engine import distributed
from xcit.engine.numerics import warn_of_slow_precision
from xcit.engine.progress import Progress
from xcit.engine.run_folder import RunFolder, new_path
from xcit.engine.task import Target, Task, require_target
from xcit.errors import InputError, given_as
from xcit.evaluation import EVALUATIONS
from xcit.evaluation.features import by_features
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import Row, Subject, by_evaluator, resolutions_for, sweep
from xcit.models import MODELS
from xcit.models.dry_run import dry_run
from xcit.models.fast.inference import ready_for_inference
from xcit.models.variants import named
from xcit.storage import load_exactly, read_tensors
from xcit.tasks import BARE_WEIGHTS, TASKS
from xcit.weights.formats import Weights, checkpoint_weights
from xcit.weights.loading import weights_at, without_head
from xcit.weights.published import find_published
from xcit.weights.sources import HUB_PREFIX, locate, read_hub_config

# In a hub folder's config.json, but no settings.
NOT_OPTIONS = ("num_classes", "in_chans", "global_pool", "pretrained_cfg", "label_names")
FEATURES_VIEW = "labelled_crop"
"""The view whose evaluation form makes the images of frozen features, whatever the task learns from."""
TABLES = make_tables(MODELS, DATASETS, TASKS, {name: view.training for name, view in VIEWS.items()}, EVALUATIONS)


def evaluate(raw: DictConfig) -> list[Row]:
    """One evaluation, from checkpoint to report. raw is the composed configuration."""
    config = read_config(EvalConfig, without_parts(raw), TABLES)
    with distributed.session() as device, Progress() as progress, ExitStack() as at_end:
        # 1. The folder for the report. The checkpoint, and its run's configuration.
        folder = RunFolder(distributed.from_main(new_path(config.run_dir, "eval")))
        distributed.on_main(folder.require_free)
        if config.data is None and is_published(config.checkpoint):  # no need to download it
            raise not_given("data", config.checkpoint)
        progress.begin(f"reading {config.checkpoint}")
        with given_as("checkpoint"), distributed.main_first():
            path = locate(config.checkpoint)
            saved = read_checkpoint(path)

        # 2. The configuration, completed with the run's own.
        whole = completed(raw, saved.config, path)
        warn_of_slow_precision(device, config.precision, "precision")

        # 3. How it is evaluated: by the task's own evaluator, or by frozen features (`method`). The images for that.
        progress.begin(f"reading the list of images, data={whole.data.name}")
        task_class, method = TASKS[whole.task.name], EVALUATIONS[whole.evaluate.name](**whole.evaluate.options)
        source = DATASETS[whole.data.name](**whole.data.options)
        if method:
            splits = labelled_splits(source, whole)
            method.check(len(splits["training"]))
        else:
            of_run = config.data is None
            splits = {"evaluation": examples_to_evaluate(source, saved.weights.classes, of_run=of_run)}
        examples = list(splits.values())[-1]
        warn_of_other_split(saved.order, examples, same_data=same_folder(whole.data, saved.config))
        if not method:
            require_target(whole.task.name, task_class, whole.data.name, examples.target_kind)
        target = Target(examples.target_kind, tuple(examples.classes))

        # 4. The task, or its backbone alone, with each kind of weights, ready for inference.
        progress.begin("building the model")
        modules: dict[str, nn.Module] = {}
        for kind in saved.weights.kinds if config.weights == "both" else [config.weights]:
            num_classes = 0 if method else task_class.num_outputs(target)
            model = create_model(whole.model.entry, num_classes=num_classes, **whole.model.options)
            if method:
                modules[kind] = backbone_of(saved, kind, model, device)
            else:
                modules[kind] = task_of(saved, kind, task_class(model, target, **whole.task.options), device)
        preprocessing = saved.weights.preprocessing(model)

        # 5. The evaluation at each resolution.
        at_end.callback(folder.close)
        distributed.on_main(folder.create)
        facts = [
            summary.device(device, config.precision),
            summary.model(whole.model.name, model, whole.model.side_of_patch, whole.resolutions),
            ("evaluate", f"{whole.evaluate.name}, {method.features} features") if method else ("task", whole.task.name),
            ("weights", f"{' and '.join(modules)} of {path}"),
            *data_facts(splits),
            summary.evaluation(whole.resolutions, whole.crop_ratio),
            ("folder", str(folder.path)),
        ]
        summary.say(facts)
        view = VIEWS[FEATURES_VIEW if method else task_class.view].evaluation

        def batches_at(split: Examples, resolution: int) -> EvalLoader:
            return EvalLoader(
                split,
                view(preprocessing.at(resolution, whole.crop_ratio), split.classes),
                config.batch_size,
                **whole.data.model_dump(include={"workers", "max_pixels"}),
                device=device,
                **distributed.place(),
            )

        if method:
            loaders = {name: partial(batches_at, split) for name, split in splits.items()}
            measure = by_features(method, loaders, len(examples.classes), device, config.precision, progress)
        else:
            measure = by_evaluator(partial(batches_at, examples), device, config.precision, progress)
        subject = Subject(whole.model.name, str(path), whole.data.name, whole.crop_ratio)
        rows = sweep(modules, measure, whole.resolutions, subject, device)

        # 6. The report.
        if distributed.is_main():
            folder.describe(to_yaml(whole))
            trained_at = saved.config.data.image_size if saved.config else None
            headline = method.headline if method else task_class.headline_for(target)
            write_report(folder.path, rows, headline, trained_at)
        return rows


def labelled_splits(source: DataSource, whole: ResolvedEvalConfig) -> dict[str, Examples]:
    """The training split, whose features are known, and the validation split. Both have one class for each image."""
    training = source.train()
    if training.target_kind != "class":
        raise InputError(
            f"evaluate={whole.evaluate.name}: needs images with one class each; "
            f"the targets of data={whole.data.name} are {training.target_kind}"
        )
    return {"training": training, "validation": source.val(training.classes)}


def task_of(saved: "Saved", kind: str, task: Task, device: torch.device) -> Task:
    """The task with its saved weights, its backbone ready for inference."""
    load_exactly(task.to(device), saved.of_task(task.backbone, kind), saved.weights.origin)
    task.set_submodule(task.backbone, ready_for_inference(task.get_submodule(task.backbone)))
    return task


def backbone_of(saved: "Saved", kind: str, model: nn.Module, device: torch.device) -> nn.Module:
    """A model without a classifier, with the saved weights of the task's backbone, ready for inference."""
    load_exactly(model.to(device), without_head(model, saved.backbone.state(kind)), saved.backbone.origin)
    return ready_for_inference(model)


@dataclass(frozen=True)
class Saved:
    """What a file of weights holds."""

    weights: Weights
    """Of the task in a run's checkpoint, otherwise of the model alone."""
    backbone: Weights
    """Of the task's backbone alone: the model."""
    config: TrainConfig | None = None
    """Of the run that wrote it; None for a file of weights."""
    order: Mapping[str, Any] = field(default_factory=dict)
    """What decided which images the run was trained on."""

    def of_task(self, backbone: str, kind: str) -> dict[str, Any]:
        """The state dict of the task. backbone: the task's."""
        prefix = "" if self.config else f"{backbone}."
        return {f"{prefix}{key}": value for key, value in self.weights.state(kind).items()}


def read_checkpoint(path: Path) -> Saved:
    content = read_tensors(path)
    if not is_checkpoint(content):
        weights = weights_at(path, content)
        return Saved(weights, weights)
    content = upgraded(content, str(path))
    weights, backbone = (
        checkpoint_weights(content, kinds, str(path)) for kinds in (task_weights(content), backbone_weights(content))
    )
    config = read_config(TrainConfig, content["identity"]["config"], TABLES)
    return Saved(weights, backbone, config, content["identity"].get("order", {}))


def same_folder(data: DataConfig, trained: TrainConfig | None) -> bool:
    """Whether a run was trained on the folder of these data."""
    here, there = data.options.get("root"), trained.data.options.get("root") if trained else None
    return here is not None and there is not None and Path(here).resolve() == Path(there).resolve()


def completed(raw: DictConfig, trained: TrainConfig | None, path: Path) -> ResolvedEvalConfig:
    """Take model, data, task, resolutions and crop ratio from the run if they are not given."""
    checkpoint = str(raw["checkpoint"])
    known = {
        "model": trained.model if trained else model_of(checkpoint, path),
        "data": trained.data if trained else None,
        "task": trained.task if trained else TaskConfig(name=BARE_WEIGHTS),
    }
    raw = with_known(raw, known)
    for group in ("model", "data"):
        if group not in raw or is_part(raw, group):
            raise not_given(group, checkpoint)
    config = read_config(EvalConfig, raw, TABLES)
    model, data = config.model, config.data
    assert model and data
    made_for = known["model"].options.get("image_size") if known["model"] else None
    trained_at = trained.data.image_size if trained else made_for or data.image_size
    resolutions = config.resolutions or (trained.resolutions if trained else None)
    dry = dry_run(model.entry, model.options, {"resolutions": resolutions or [trained_at]})
    resolutions = resolutions or resolutions_for(dry, trained_at, model.side_of_patch)
    crop_ratio = config.crop_ratio or (trained.crop_ratio if trained else 1.0)
    return ResolvedEvalConfig.model_construct(**dict(config) | {"resolutions": resolutions, "crop_ratio": crop_ratio})


def is_published(checkpoint: str) -> bool:
    """Whether it names weights without a run's configuration, and no file or folder."""
    named = checkpoint.startswith(("timm/", HUB_PREFIX)) or find_published(checkpoint)
    return bool(named) and not Path(checkpoint).exists()


def not_given(group: str, checkpoint: str) -> InputError:
    return InputError(f"{group}: must be given, because {checkpoint} does not say which one in conf/{group}")


def model_of(checkpoint: str, path: Path) -> ModelConfig | None:
    """The model that published weights are for, or that the config.json beside a hub folder's weights describes."""
    published, hub_config = find_published(checkpoint), read_hub_config(path)
    plain: dict[str, Any] | None = None
    if published:
        plain = published.options
    elif checkpoint.startswith("timm/"):
        plain = {"library": "timm", "name": checkpoint.removeprefix("timm/")}
    elif hub_config:
        plain = named(hub_config)
    if plain is None:
        return None
    options = {key: value for key, value in plain.items() if key not in NOT_OPTIONS}
    return section_for("model", options, MODELS).model_validate(options)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@guarded
def main(raw: DictConfig) -> None:
    evaluate(raw)


if __name__ == "__main__":
    run(main, __file__)
