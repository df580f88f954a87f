"""Train a model and evaluate it across resolutions: the story of one run.

python train.py                                                 # a small XCiT on the digits
python train.py model=xcit_s12 data=imagenet data.root=/path    # the paper's run
torchrun --nproc-per-node=8 train.py …                          # the same on eight GPUs
"""

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from xcit.start import answer

    answer(__file__)

from collections.abc import Sequence
from contextlib import ExitStack

import hydra
import torch
from omegaconf import DictConfig

from data.datasets import DATASETS
from data.examples import Examples, target_statistics
from data.gpu_decoding import require_decoding
from data.loader import EvalLoader, TrainLoader
from data.look import look_through, require_sound
from data.samplers import TrainBatches, sampling_of
from data.start_up import data_facts, data_notes, few_images_notes, warn_of_other_split
from data.views import VIEWS
from xcit import create_model, summary
from xcit.command import JobResult, choices_and_typed_keys, guarded, run
from xcit.config import ScaledTrainConfig, TrainConfig
from xcit.config.composition import Choices, continued, make_tables, read_config, require_target, to_yaml
from xcit.credentials import without_credentials
from xcit.engine import distributed
from xcit.engine.batch_size import find_accumulate
from xcit.engine.cuda_graph import require_cuda_graph
from xcit.engine.ema import make_ema
from xcit.engine.freezing import freeze, frozen_parts
from xcit.engine.length import Length
from xcit.engine.loop import Trainer, evaluate, fit
from xcit.engine.numerics import grad_scaler, require_determinism, warn_of_slow_precision
from xcit.engine.optimizer import make_optimizer, peak_lr
from xcit.engine.progress import Progress
from xcit.engine.resume import find_origin, folder_for, initial_weights, open_run, read_start
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState
from xcit.engine.stopping import StopSignals
from xcit.engine.task import Target, Task, choose_headline, input_of
from xcit.engine.trackers import new_run_id
from xcit.evaluation.report import read_score, score_of, write_report
from xcit.evaluation.resolutions import Subject, by_evaluator, resolutions_for, sweep
from xcit.models import MODELS
from xcit.models.dry_run import dry_run, require_statistics
from xcit.models.fast.checkpointing import set_checkpointing
from xcit.models.fast.compiling import compile_model
from xcit.preprocessing import Preprocessing
from xcit.signals import if_stopped
from xcit.tasks import TASKS

TABLES = make_tables(MODELS, DATASETS, TASKS, {name: view.training for name, view in VIEWS.items()})


def train(raw: DictConfig, choices: Choices, typed: Sequence[str]) -> JobResult:
    """One run, from configuration to report; returns the headline metric of the final weights as trained.

    raw is the composed configuration, choices are the files of conf/ in it, and typed the keys on the command line.
    """
    with distributed.session() as device, Progress() as progress, ExitStack() as at_end:
        # 1. The configuration: as composed, or that of the run to continue, changed by what was typed.
        origin = find_origin(str(raw["resume"]), raw["run_dir"], lambda: read_config(TrainConfig, raw, TABLES).name)
        if origin:
            at_end.callback(origin.folder.close)
            raw, choices = continued(origin.config, origin.choices, raw, choices, typed)
        given = read_config(TrainConfig, raw, TABLES)
        resolutions = check(given, device)

        # 2. The data set: training and validation examples, and their kind of target. Their number sets what is "auto".
        progress.begin(f"reading the list of images, data={given.data.name}")
        source = DATASETS[given.data.name](**given.data.options)
        examples = source.train()
        config = given.scaled(len(examples), distributed.world_size())
        held_out = source.val(examples.classes)
        task_class = TASKS[config.task.name]
        require_target(config.task.name, task_class.target_kinds, config.data.name, examples.target_kind)
        target = Target(examples.target_kind, tuple(examples.classes), **target_statistics(examples))
        headline = choose_headline(config.train.select, task_class, target, len(held_out))

        # 3. The run's folder. A finished run is left as it is.
        length = Length(**config.length)
        changed = summary.changes(read_config(TrainConfig, origin.config, TABLES), config) if origin else []
        if origin and origin.is_finished and origin.is_complete(length, headline):
            summary.announce_end(origin.folder.path, changed)
            score = read_score(origin.folder.results, headline, config.data.resolution)
            return JobResult(score, headline, origin.folder.path)
        folder = folder_for(origin, config.resume, config.run_dir, config.name)
        folder.keep(last=config.train.keep_last, best=config.train.keep_best)
        at_end.callback(folder.close)

        # 4. The model, and the task that says what it learns.
        progress.begin("building the model" + (" and reading its weights" if config.initial_weights else ""))
        start = None if origin else read_start(config.init_from, config.task.name, config.model.name, examples.classes)
        model = new_model(config, task_class.num_outputs(target), None if origin else config.initial_weights)
        task = task_class(model, target, **config.task.options).to(device)
        freeze(model, config.train.freeze)
        given_values = {**(origin.input_values if origin else {}), **config.data.input_values}
        preprocessing = input_of(task, model, given_values, config.data.size, config.crop_ratio)
        if config.train.batch_size == "auto":
            progress.begin("trying batch sizes")
            once = (examples, preprocessing, Length(updates=1), device)
            trials = ((n, train_batches(tried, *once)) for n, tried in config.trials(distributed.world_size()))
            config = config.with_accumulate(find_accumulate(task, trials, device, config.train.precision))
        distributed.synchronise_batchnorm(task, device)

        # 5. Everything that must survive a crash; a resumed run continues from its checkpoint.
        state = new_state(config, choices, task, examples, preprocessing, device)
        if origin:
            state.load_state_dict(origin.saved, str(origin.checkpoint))
            warn_of_other_split(origin.saved["identity"].get("order", {}), held_out, within_epoch=state.seen > 0)
            summary.announce_resume(origin.checkpoint, state.epoch, state.seen, changed)
        elif start:
            state.load_weights(start, f"init_from={config.init_from}")

        # 6. The batches: augmented ones to learn from, and plain ones at any resolution to be evaluated on.
        batches = train_batches(config, examples, preprocessing, length, device)
        updates_per_epoch = len(batches) // config.train.accumulate

        def batches_at(resolution: int) -> EvalLoader:
            return EvalLoader(
                held_out,
                VIEWS[task.view].evaluation(preprocessing.at(resolution), examples.classes),
                config.train.images_per_pass(distributed.world_size()),
                **config.data.model_dump(include={"workers", "max_pixels"}),
                device=device,
                **distributed.place(),
            )

        # Say what the run has understood, and look through the validation images.
        facts = [
            summary.device(device, config.train.precision),
            summary.model(config.model.name, model, config.model.side_of_patch, preprocessing, config.training_sizes),
            *summary.images(preprocessing),
            ("task", config.task.name),
            *data_facts({"training": examples, "validation": held_out}),
            summary.training(length, updates_per_epoch, config.train.global_batch_size, config.optim.lr),
            summary.evaluation(resolutions, config.crop_ratio),
            summary.start(config.pretrained, config.init_from, origin.checkpoint if origin else None),
            ("folder", str(folder.path)),
        ]
        notes = data_notes(examples, preprocessing, config.train.global_batch_size)
        if not config.initial_weights and not origin:
            notes += few_images_notes(examples, config.data.resolution, config.optim.layer_decay)
        summary.say(facts, notes)
        validation = batches_at(config.data.resolution)
        progress.begin("looking through the validation images")
        summary.say([], require_sound(distributed.from_all(look_through(validation)), len(held_out)))

        # 7. Prepare for training: the task's hook (distillation fetches its teacher), torch.compile.
        progress.begin("preparing the training")
        with distributed.main_first():
            task.begin_training(device)
        if config.train.compile:
            for part in task.networks.values():
                compile_model(task.get_submodule(part))

        # 8. Train, with a validation and a checkpoint after each epoch. open_run creates the run folder.
        trainer = Trainer(
            state,
            distributed.parallelise(task, device),
            schedule=make_schedule(
                state.optimizer,
                num_updates=length.num_updates(updates_per_epoch),
                updates_per_epoch=updates_per_epoch,
                **config.optim.schedule_options,
            ),
            device=device,
            **config.train.trainer,
            **config.optim.model_dump(include={"clip_norm", "clip_by"}),
            seed=config.seed,
            length=length,
            frozen=frozen_parts(model, config.train.freeze, batchnorms=config.train.freeze_batchnorm),
        )
        recorder = open_run(folder, origin, state, to_yaml(config), **config.logger.model_dump())
        with if_stopped(f"(to go on: python train.py resume={folder.path})"), StopSignals() as signals, recorder:
            fit(
                trainer,
                batches,
                lambda task: evaluate(task, progress.track(validation, "validation"), device, config.train.precision),
                folder=folder,
                recorder=recorder,
                save_every=config.train.save_every,
                best_by=config.train.best_by,
                asked_to_stop=signals.agreed,
                progress=progress,
            )

        # 9. Evaluate the final weights across resolutions, and report.
        with if_stopped(f"during the final evaluation; to evaluate the model: python eval.py checkpoint={folder.path}"):
            subject = Subject(config.model.name, str(folder.last), config.data.name, config.crop_ratio)
            measure = by_evaluator(batches_at, device, config.train.precision, progress)
            rows = sweep(state.weights(), measure, resolutions, subject, device, folder.path)
        if distributed.is_main():
            print(f"best.pt: {state.describe_best()}")
            write_report(folder.path, rows, headline, trained_at=config.data.resolution)
        return JobResult(score_of(rows, headline, config.data.resolution), headline, folder.path)


def check(given: TrainConfig, device: torch.device) -> list[int]:
    """Raise an InputError for whatever is wrong, before the data are read. Return the resolutions to evaluate at."""
    config = given.scaled(1_000_000, distributed.world_size())  # the number of images is not known yet
    task = TASKS[config.task.name]
    require_determinism(given.deterministic, device, task.nondeterministic)
    warn_of_slow_precision(device, config.train.precision, "train.precision")
    require_cuda_graph(config.train.cuda_graph, device, config.task.name, task)
    require_decoding(config.data.decode, device)
    images = config.train.images_per_pass(distributed.world_size()) * distributed.world_size()
    task.check_options(config.task.options, config.augment.options)
    task.check_pass(config.task.options, images, min(config.training_sizes))
    sizes = {**config.sizes, **VIEWS[task.view].sizes(config.augment.options)}
    model = dry_run(config.model.entry, config.model_options, sizes)
    set_checkpointing(model, config.train.grad_checkpointing)
    freeze(model, config.train.freeze)
    require_statistics(model, images, min(config.training_sizes), frozen=config.train.freeze_batchnorm)
    make_optimizer(model, lr=config.optim.lr, **config.optim.optimizer)
    return resolutions_for(model, config.data.resolution, config.model.side_of_patch, config.resolutions)


def check_job(raw: DictConfig) -> None:
    """Raise an InputError for what is wrong with a job of a multirun, before the first job begins."""
    with distributed.session() as device:
        check(read_config(TrainConfig, raw, TABLES), device)


def new_model(config: TrainConfig, num_classes: int, pretrained: str | bool | None) -> torch.nn.Module:
    """The model before the first update. num_classes: the outputs that the task needs."""
    torch.manual_seed(config.seed)
    with initial_weights(config.init_from), distributed.main_first():
        model = create_model(config.model.entry, num_classes=num_classes, pretrained=pretrained, **config.model_options)
    set_checkpointing(model, config.train.grad_checkpointing)
    return model.to(memory_format=torch.channels_last) if config.train.channels_last else model


def new_state(
    config: ScaledTrainConfig,
    choices: Choices,
    task: Task,
    examples: Examples,
    preprocessing: Preprocessing,
    device: torch.device,
) -> TrainingState:
    """The state before the first update."""
    return TrainingState(
        task,
        make_optimizer(task, lr=peak_lr(config.optim.lr, config.train.global_batch_size), **config.optim.optimizer),
        scaler=grad_scaler(device, config.train.precision),
        ema=make_ema(task, config.train.ema_decay, warm_up=config.init_from is None),
        preprocessing=preprocessing,
        select=config.train.select,
        identity={
            "config": without_credentials(config.model_dump()),
            "choices": dict(choices),
            "classes": examples.classes,
            "tracker": new_run_id(),
            "order": {"the number of images": len(examples), **config.order, **without_credentials(examples.order)},
        },
    )


def train_batches(
    config: ScaledTrainConfig, examples: Examples, preprocessing: Preprocessing, length: Length, device: torch.device
) -> TrainLoader:
    """This process's share of the augmented batches, as conf/augment describes them."""
    view = VIEWS[TASKS[config.task.name].view].training
    inputs = map(preprocessing.at, config.training_sizes)
    order = TrainBatches(
        len(examples),
        config.train.images_per_pass(distributed.world_size()),
        seed=config.seed,
        accumulate=config.train.accumulate,
        repeats=config.augment.repeats,
        **distributed.place(),
        shuffled=sampling_of(examples, config.data.sampling),
    )
    return TrainLoader(
        examples,
        [view(of_size, examples.classes, config.data.decode, **config.augment.options) for of_size in inputs],
        order,
        epochs=length.num_epochs(len(order) // config.train.accumulate),
        device=device,
        **config.data.model_dump(include={"workers", "max_broken", "max_pixels"}),
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@guarded
def main(raw: DictConfig) -> JobResult:
    return train(raw, *choices_and_typed_keys())


if __name__ == "__main__":
    run(main, __file__, check_job)
