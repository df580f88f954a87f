"""Evaluate a checkpoint across resolutions: the story of one evaluation.

python eval.py checkpoint=runs/xcit_n12_digits/20261124-210000-123456
python eval.py checkpoint=xcit_small_12_p16_384_dist data=imagenet data.root=/path 'resolutions=[224,384]'
python eval.py checkpoint=runs/mine evaluate=knn       # or linear, retrieval: the frozen features of the backbone
torchrun --nproc-per-node=8 eval.py …
"""

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(__file__)

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from torch import nn

from data.datasets import DATASETS
from data.examples import Examples, examples_to_evaluate
from data.loader import EvalLoader
from data.start_up import data_facts, warn_of_other_split
from data.views import VIEWS
from xcit import create_model, summary
from xcit.command import guarded, run
from xcit.config import EvalConfig, ResolvedEvalConfig, TrainConfig
from xcit.config.composition import (
    is_part,
    make_tables,
    read_config,
    require_target,
    section_for,
    to_yaml,
    with_known,
    without_parts,
)
from xcit.config.sections import DataConfig
from xcit.engine import distributed
from xcit.engine.numerics import warn_of_slow_precision
from xcit.engine.progress import Progress
from xcit.engine.run_folder import RunFolder, new_path
from xcit.engine.task import Target, Task
from xcit.errors import InputError, given_as
from xcit.evaluation import EVALUATIONS
from xcit.evaluation.features import OfFeatures, by_features
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import Measure, Row, Subject, by_evaluator, resolutions_for, sweep
from xcit.models import MODELS
from xcit.models.dry_run import dry_run
from xcit.models.fast.inference import ready_for_inference
from xcit.saved import Saved, is_published, model_of, not_given, read_checkpoint
from xcit.storage import load_exactly
from xcit.tasks import BARE_WEIGHTS, TASKS
from xcit.tasks.load import ready
from xcit.weights.loading import with_pruned_parts_of, without_head
from xcit.weights.sources import locate

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
            saved = read_checkpoint(path, TABLES)

        # 2. The configuration, completed with the run's own.
        require_own_input(raw, saved)
        whole = completed(raw, saved.config, path, saved.weights.task)
        warn_of_slow_precision(device, config.precision, "precision")

        # 3. How it is evaluated, and the images for that.
        progress.begin(f"reading the list of images, data={whole.data.name}")
        way = (by_task if whole.evaluate.name == "task" else by_frozen_features)(whole, saved, config.data is None)
        examples = list(way.splits.values())[-1]
        warn_of_other_split(saved.order, examples, same_data=same_folder(whole.data, saved.config))

        # 4. What is evaluated, with each kind of weights, ready for inference.
        progress.begin("building the model")
        modules: dict[str, nn.Module] = {}
        options: dict[str, Any] = whole.model.options | saved.weights.in_chans
        for kind in saved.weights.kinds if config.weights == "both" else [config.weights]:
            model = create_model(whole.model.entry, num_classes=way.num_outputs, **options)
            module = modules[kind] = way.module(model, kind).to(device)
        preprocessing = saved.weights.preprocessing(model)
        if isinstance(module, Task):  # its options may have been changed
            preprocessing = module.preprocessing(preprocessing)

        # 5. The evaluation at each resolution.
        at_end.callback(folder.close)
        distributed.on_main(folder.create)
        facts = [
            summary.device(device, config.precision),
            summary.model(whole.model.name, model, whole.model.side_of_patch, preprocessing, whole.resolutions),
            *summary.images(preprocessing),
            way.fact,
            ("weights", f"{' and '.join(modules)} of {path}"),
            *data_facts(way.splits),
            summary.evaluation(whole.resolutions, whole.crop_ratio),
            ("folder", str(folder.path)),
        ]
        summary.say(facts)

        def batches_at(split: Examples, resolution: int) -> EvalLoader:
            return EvalLoader(
                split,
                VIEWS[way.view].evaluation(preprocessing.at(resolution, whole.crop_ratio), split.classes),
                config.batch_size,
                **whole.data.model_dump(include={"workers", "max_pixels"}),
                device=device,
                **distributed.place(),
            )

        loaders = {purpose: partial(batches_at, split) for purpose, split in way.splits.items()}
        measure = way.measure(loaders, device, config.precision, progress)
        subject = Subject(whole.model.name, str(path), whole.data.name, whole.crop_ratio)
        rows = sweep(modules, measure, whole.resolutions, subject, device, folder.path)

        # 6. The report.
        if distributed.is_main():
            folder.describe(to_yaml(whole))
            trained_at = saved.config.data.resolution if saved.config else None
            write_report(folder.path, rows, way.headline, trained_at)
        return rows


@dataclass(frozen=True)
class Way:
    """A way to evaluate: by the task's own evaluator, or by the frozen features of its backbone."""

    fact: tuple[str, str]
    """What the command says of it at its start."""
    splits: dict[str, Examples]
    """The images that it needs, by their purpose. The last ones are those that are evaluated."""
    view: str
    num_outputs: int
    """Of the model's classifier; 0 for none."""
    module: Callable[[nn.Module, str], nn.Module]
    """Makes what is evaluated of a new model and one kind of weights."""
    measure: Callable[..., Measure]
    """Makes the function that `sweep` calls, from the loaders of the splits."""
    headline: str


def by_task(whole: ResolvedEvalConfig, saved: Saved, of_run: bool) -> Way:
    """By the evaluator of the task, for classification top-1. of_run: on the data of the run."""
    task_class, source = TASKS[whole.task.name], DATASETS[whole.data.name](**whole.data.options)
    task_class.check_options(whole.task.options, {})
    examples = examples_to_evaluate(source, saved.weights.classes, of_run=of_run)
    require_target(whole.task.name, task_class.target_kinds, whole.data.name, examples.target_kind)
    target = Target(examples.target_kind, tuple(examples.classes))

    def module(model: nn.Module, kind: str) -> Task:
        task = task_class(model, target, **whole.task.options)
        load_exactly(task, saved.of_task(task.backbone, kind), saved.weights.origin)
        return ready(task)

    return Way(
        fact=("task", whole.task.name),
        splits={"evaluation": examples},
        view=task_class.view,
        num_outputs=task_class.num_outputs(target),
        module=module,
        measure=lambda loaders, *rest: by_evaluator(loaders["evaluation"], *rest),
        headline=task_class.headline_for(target),
    )


def by_frozen_features(whole: ResolvedEvalConfig, saved: Saved, of_run: bool) -> Way:
    """By the features of the backbone alone: those of the training images are known, the validation images ask."""
    method: OfFeatures = EVALUATIONS[whole.evaluate.name](**whole.evaluate.options)
    source = DATASETS[whole.data.name](**whole.data.options)
    training = source.train()
    if training.target_kind != "class":
        raise InputError(
            f"evaluate={whole.evaluate.name}: needs images with one class each; "
            f"the targets of data={whole.data.name} are {training.target_kind}"
        )
    method.check(len(training))

    def module(model: nn.Module, kind: str) -> nn.Module:
        state = without_head(model, saved.backbone.state(kind))
        _, lacks = with_pruned_parts_of(model, state, saved.backbone.origin)
        if lacks:
            raise InputError(
                f"evaluate={whole.evaluate.name}: {lacks.partition(';')[0]}, but frozen features come from there; "
                f"train.py pretrained={whole.checkpoint} trains a classifier on this backbone"
            )
        load_exactly(model, state, saved.backbone.origin)
        return ready_for_inference(model)

    return Way(
        fact=("evaluate", f"{whole.evaluate.name}, {method.features} features"),
        splits={"training": training, "validation": source.val(training.classes)},
        view=FEATURES_VIEW,
        num_outputs=0,
        module=module,
        measure=lambda loaders, *rest: by_features(method, loaders, len(training.classes), *rest),
        headline=method.headline,
    )


def require_own_input(raw: DictConfig, saved: Saved) -> None:
    """Refuse settings of pixels that are not the checkpoint's: it is evaluated with those that it was trained with."""
    typed, own = raw.get("data") or {}, saved.weights.input_values
    for key in ("channels", "bit_depth", "value_range", "mean", "std", "resize"):
        wanted = list(own[key]) if isinstance(own.get(key), tuple) else own.get(key)
        if key in typed and key in own and typed[key] not in (None, wanted):
            raise InputError(f"data.{key}={typed[key]}: the checkpoint is for {wanted}, which is always used")


def same_folder(data: DataConfig, trained: TrainConfig | None) -> bool:
    """Whether a run was trained on the folder, or the table, of these data."""
    runs = trained.data.options if trained else {}
    here, there = (options.get("path") or options.get("root") for options in (data.options, runs))
    return here is not None and there is not None and Path(here).resolve() == Path(there).resolve()


def completed(
    raw: DictConfig, trained: TrainConfig | None, path: Path, task: Mapping[str, Any] | None = None
) -> ResolvedEvalConfig:
    """Take model, data, task, resolutions and crop ratio from the run if they are not given.

    task: see `Weights.task`; a published detector or segmenter is evaluated at its one size.
    """
    checkpoint, of_file = str(raw["checkpoint"]), task or {"name": BARE_WEIGHTS}
    known = {
        "model": trained.model if trained else model_of(checkpoint, path),
        "data": trained.data if trained else None,
        "task": trained.task if trained else section_for("task", of_file, TASKS).model_validate(of_file),
    }
    raw = with_known(raw, known)
    for group in ("model", "data"):
        if group not in raw or is_part(raw, group):
            raise not_given(group, checkpoint)
    # conf/task may set augmentation, which is for training alone.
    config = read_config(EvalConfig, without_parts(raw), TABLES)
    model, data = config.model, config.data
    assert model and data
    made_for = known["model"].options.get("image_size") if known["model"] else None
    trained_at = trained.data.resolution if trained else made_for or data.resolution
    resolutions = config.resolutions or (trained.resolutions if trained else [trained_at] if task else None)
    dry = dry_run(model.entry, model.options, {"resolutions": resolutions or [trained_at]})
    resolutions = resolutions or resolutions_for(dry, trained_at, model.side_of_patch)
    crop_ratio = config.crop_ratio or (trained.crop_ratio if trained else 1.0)
    return ResolvedEvalConfig.model_construct(**dict(config) | {"resolutions": resolutions, "crop_ratio": crop_ratio})


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@guarded
def main(raw: DictConfig) -> None:
    evaluate(raw)


if __name__ == "__main__":
    run(main, __file__)
