"""Train a model and evaluate it across resolutions: the story of one run.

python train.py                                                 # a small XCiT on the digits
python train.py model=xcit_s12 data=imagenet data.root=/path    # the paper's run
torchrun --nproc-per-node=8 train.py …                          # the same on eight GPUs
"""

import hydra
import torch
from omegaconf import DictConfig
from timm.utils import ModelEmaV3
from torch import nn

from data.datasets import DATASETS
from data.examples import Examples
from data.gpu_decoding import require_gpu_decoding
from data.loader import EvalLoader, TrainLoader
from data.samplers import TrainBatches
from data.views import VIEWS
from xcit import create_model
from xcit.command import guarded, run
from xcit.composition import every_key, make_tables, read_config, to_yaml
from xcit.config import TrainConfig
from xcit.engine import distributed
from xcit.engine.freezing import freeze, frozen_parts
from xcit.engine.length import Length
from xcit.engine.loop import Trainer, evaluate, fit
from xcit.engine.numerics import grad_scaler, require_determinism
from xcit.engine.optimizer import make_optimizer, peak_lr
from xcit.engine.progress import announce_resume
from xcit.engine.recorder import NullRecorder, Recorder
from xcit.engine.run_folder import RunFolder, resolve
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState, read_state
from xcit.engine.stopping import StopSignals
from xcit.engine.task import Target, Task, require_target
from xcit.engine.trackers import make_tracker, new_run_id
from xcit.errors import given_as
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import sweep
from xcit.models.dry_run import dry_run
from xcit.models.fast.checkpointing import switch_on_checkpointing
from xcit.models.fast.compiling import compile_model
from xcit.preprocessing import Preprocessing
from xcit.tasks import TASKS

TABLES = make_tables(DATASETS, {name: view.training for name, view in VIEWS.items()})


def train(config: TrainConfig) -> float:
    """One run, from configuration to report; returns the headline metric of the final weights as trained."""
    with distributed.session() as device:
        # 1. Check the configuration before any work starts, and find the run's folder.
        require_determinism(config.deterministic)
        check(config, device)
        folder, checkpoint = distributed.from_main(resolve(config.resume, config.run_dir, config.name))

        # 2. The data set: training and validation examples, and their kind of target.
        source = DATASETS[config.data.name](**config.data.options)
        examples = source.train()
        held_out = source.val(examples.classes)
        require_target(config.task.name, TASKS[config.task.name], config.data.name, examples.target_kind)
        target = Target(examples.target_kind, tuple(examples.classes))

        # 3. The model, and the task that says what it learns.
        model = new_model(config, target, pretrained=None if checkpoint else config.pretrained)
        task = TASKS[config.task.name](model, target, **config.task.options).to(device)
        distributed.synchronise_batchnorm(task, device)
        freeze(model, config.train.freeze)
        preprocessing = Preprocessing.of_model(model).at(config.data.image_size, config.crop_ratio)

        # 4. Everything that must survive a crash; a resumed run continues from its checkpoint.
        state = new_state(config, task, examples, preprocessing, device)
        if checkpoint:
            saved = read_state(checkpoint)
            state.load_state_dict(saved, str(checkpoint))
            before = read_config(TrainConfig, saved["identity"]["config"], TABLES)
            announce_resume(checkpoint, state.epoch, state.seen, before.model_dump(), config.model_dump())

        # 5. The batches: augmented ones to learn from, and plain ones at any resolution to be evaluated on.
        length = Length(config.train.epochs, config.train.updates)
        batches = train_batches(config, examples, preprocessing, length, device)
        updates_per_epoch = len(batches) // config.train.accumulate
        evaluation_view = VIEWS[task.view].evaluation

        def batches_at(resolution: int) -> EvalLoader:
            return EvalLoader(
                held_out,
                evaluation_view(preprocessing.at(resolution), examples.classes),
                config.train.batch_size(distributed.world_size()),
                workers=config.data.workers,
                device=device,
                rank=distributed.rank(),
                world_size=distributed.world_size(),
            )

        # 6. Prepare for training: the task's hook (distillation fetches its teacher), torch.compile, DDP.
        with distributed.main_first():
            task.begin_training(device)
        if config.train.compile:
            compile_model(model)
        module = distributed.parallelise(task, device)

        # 7. Train, with a validation and a checkpoint after each epoch. The run folder is created here.
        trainer = Trainer(
            state,
            module,
            schedule=make_schedule(
                state.optimizer,
                num_updates=length.num_updates(updates_per_epoch),
                updates_per_epoch=updates_per_epoch,
                **config.optim.schedule,
            ),
            device=device,
            precision=config.train.precision,
            global_batch_size=config.train.global_batch_size,
            accumulate=config.train.accumulate,
            clip_norm=config.optim.clip_norm,
            log_every=config.train.log_every,
            seed=config.seed,
            length=length,
            frozen=frozen_parts(model, config.train.freeze),
        )
        validation = batches_at(config.data.image_size)
        with StopSignals() as signals, open_run(config, folder, state) as recorder:
            fit(
                trainer,
                batches,
                lambda task: evaluate(task, validation, device, config.train.precision),
                folder=folder,
                recorder=recorder,
                save_every=config.train.save_every,
                asked_to_stop=signals.agreed,
            )

        # 8. Evaluate the final weights across resolutions, and report.
        rows = sweep(
            state.weights(),
            batches_at,
            sorted({*config.resolutions, config.data.image_size}),
            model=config.model.name,
            checkpoint=str(folder.last),
            eval_set=config.data.name,
            crop_ratio=config.crop_ratio,
            device=device,
            precision=config.train.precision,
        )
        if distributed.is_main():
            write_report(folder.path, rows, state.headline, trained_at=config.data.image_size)
            print(f"run folder: {folder.path}")
        (final,) = (r for r in rows if (r["resolution"], r["weights"]) == (config.data.image_size, "raw"))
        return final[state.headline]


def check(config: TrainConfig, device: torch.device) -> None:
    """Raise an InputError for whatever is wrong with the configuration, before the data are read."""
    if config.data.decode == "gpu":
        require_gpu_decoding(device)
    config.train.batch_size(distributed.world_size())
    TASKS[config.task.name].check_options(config.task.options, config.augment.options)
    sizes = {
        "augment.image_sizes": config.augment.image_sizes or [],
        "data.image_size": [config.data.image_size],
        "resolutions": config.resolutions,
    }
    model = dry_run(config.model.entry, config.model.options, sizes)
    if config.train.grad_checkpointing:
        switch_on_checkpointing(model)
    freeze(model, config.train.freeze)
    new_optimizer(config, model)


def new_model(config: TrainConfig, target: Target, pretrained: str | bool | None) -> nn.Module:
    """The model before the first update, with as many outputs as the task needs."""
    torch.manual_seed(config.seed)
    with given_as("pretrained"), distributed.main_first():
        model = create_model(
            config.model.entry,
            num_classes=TASKS[config.task.name].num_outputs(target),
            pretrained=pretrained,
            **config.model.options,
        )
    if config.train.grad_checkpointing:
        switch_on_checkpointing(model)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def new_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(
        module,
        name=config.optim.name,
        lr=peak_lr(config.optim.lr, config.train.global_batch_size),
        weight_decay=config.optim.weight_decay,
        options=config.optim.options,
        layer_decay=config.optim.layer_decay,
    )


def new_state(
    config: TrainConfig, task: Task, examples: Examples, preprocessing: Preprocessing, device: torch.device
) -> TrainingState:
    """The state before the first update."""
    return TrainingState(
        task,
        new_optimizer(config, task),
        scaler=grad_scaler(device, config.train.precision),
        ema=None if config.train.ema_decay is None else ModelEmaV3(task, decay=config.train.ema_decay),
        preprocessing=preprocessing,
        identity={
            "config": config.model_dump(),
            "classes": examples.classes,
            "tracker": new_run_id(),
            # What the order of an epoch depends on: a resume within an epoch needs the same.
            "order": {
                "data": config.data.name,
                "the number of images": len(examples),
                "augment.repeats": config.augment.repeats,
                "train.global_batch_size": config.train.global_batch_size,
                "seed": config.seed,
                **examples.order,
            },
        },
    )


def train_batches(
    config: TrainConfig, examples: Examples, preprocessing: Preprocessing, length: Length, device: torch.device
) -> TrainLoader:
    """This process's share of the augmented batches, as conf/augment describes them."""
    view = VIEWS[TASKS[config.task.name].view].training
    order = TrainBatches(
        len(examples),
        config.train.batch_size(distributed.world_size()),
        seed=config.seed,
        accumulate=config.train.accumulate,
        repeats=config.augment.repeats,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        shuffled=examples.shuffled,
    )
    return TrainLoader(
        examples,
        [
            view(preprocessing.at(size), examples.classes, config.data.decode, **config.augment.options)
            for size in config.augment.image_sizes or [config.data.image_size]
        ],
        order,
        epochs=length.num_epochs(len(order) // config.train.accumulate),
        workers=config.data.workers,
        device=device,
        max_broken=config.data.max_broken,
    )


def open_run(config: TrainConfig, folder: RunFolder, state: TrainingState) -> Recorder:
    """Make the run's folder, or continue in it, and open what is recorded there."""
    if not distributed.is_main():
        return NullRecorder()
    if state.step == 0:
        folder.create()
    folder.describe(to_yaml(config), state.identity["classes"])
    tracker = make_tracker(
        config.logger.name,
        folder.path,
        after_step=state.step,
        run_id=state.identity["tracker"],
        config=config.model_dump(),
        **config.logger.model_dump(exclude={"name"}),
    )
    return Recorder(folder.metrics, tracker, after_step=state.step, epochs_done=state.epoch)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@guarded
def main(raw: DictConfig) -> float:
    return train(read_config(TrainConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, every_key(TrainConfig, TABLES))
