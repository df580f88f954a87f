"""Train a model and evaluate it across resolutions: the story of one run.

python train.py                                                 # a small XCiT on the digits
python train.py model=xcit_s12 data=imagenet data.root=/path    # the paper's run
torchrun --nproc-per-node=8 train.py …                          # the same on eight GPUs
"""

import hydra
import torch
from omegaconf import DictConfig
from timm.utils import ModelEmaV3

import data
from xcit import InputError, create_model
from xcit.command import guarded, run
from xcit.composition import Tables, every_key, read_config, to_yaml
from xcit.config import TrainConfig
from xcit.engine import distributed
from xcit.engine.freezing import freeze, frozen_parts
from xcit.engine.loop import Trainer, evaluate, fit
from xcit.engine.numerics import grad_scaler, require_determinism
from xcit.engine.optimizer import make_optimizer, peak_lr
from xcit.engine.progress import announce_resume
from xcit.engine.recorder import NullRecorder, Recorder
from xcit.engine.run_folder import RunFolder, resolve
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState, read_state
from xcit.engine.stopping import StopSignals
from xcit.engine.trackers import make_tracker, new_run_id
from xcit.errors import given_as
from xcit.evaluation.report import write_report
from xcit.evaluation.resolutions import sweep
from xcit.models import MODELS
from xcit.models.dry_run import dry_run
from xcit.models.fast.checkpointing import switch_on_checkpointing
from xcit.models.fast.compiling import compile_model
from xcit.preprocessing import DataSettings, data_settings
from xcit.tasks import TASKS

TABLES: Tables = {"model": MODELS, "data": data.DATASETS, "task": TASKS}


def train(config: TrainConfig) -> float:
    """One run, from configuration to report; returns the headline metric of the final weights as trained."""
    with distributed.session() as device:
        require_determinism(config.deterministic)
        check(config, device)
        folder, checkpoint = distributed.from_main(resolve(config.resume, config.run_dir, config.name))

        # The model with its task, and all that changes while it learns.
        source = data.DATASETS[config.data.name](**config.data.options)
        images = source.train()
        held_out = source.val(images.classes)
        state = new_state(config, images, device, pretrained=None if checkpoint else config.pretrained)
        if checkpoint:
            saved = read_state(checkpoint)
            state.load_state_dict(saved, str(checkpoint))
            announce_resume(checkpoint, state.epoch, state.seen, saved["identity"]["config"], config.model_dump())

        # The data: augmented batches to learn from, and plain ones, at any resolution, to be judged by.
        settings = data_settings(state.task.model)
        batches = train_batches(config, images, settings, device)

        def plain_batches(resolution: int) -> data.EvalLoader:
            return eval_batches(config, held_out, settings, resolution, device)

        trainer = make_trainer(config, state, len(batches), device)
        validation = plain_batches(config.data.image_size)

        # From here on there is something to keep.
        with StopSignals() as signals, open_run(config, folder, state) as recorder:
            fit(
                trainer,
                batches,
                lambda task: evaluate(task, validation, device, config.train.precision),
                epochs=config.train.epochs,
                folder=folder,
                recorder=recorder,
                save_every=config.train.save_every,
                asked_to_stop=signals.agreed,
            )

        rows = sweep(
            state.weights(),
            plain_batches,
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
        as_trained = next(
            row for row in rows if row["resolution"] == config.data.image_size and row["weights"] == "raw"
        )
        return as_trained[state.headline]


def check(config: TrainConfig, device: torch.device) -> None:
    """Refuse what can be refused before the data are looked at."""
    if config.data.decode == "gpu":
        data.require_gpu_decoding(device)
    config.train.batch_size(distributed.world_size())
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
    if config.task.options.get("loss") == "binary_cross_entropy" and config.augment.label_smoothing:
        raise InputError(
            f"augment.label_smoothing={config.augment.label_smoothing}: must be 0 with task.loss=binary_cross_entropy, "
            "to which a class with any share of an image is a right one"
        )


def train_batches(
    config: TrainConfig, images: data.Images, settings: DataSettings, device: torch.device
) -> data.TrainLoader:
    """This process's share of the augmented batches, as conf/augment has them."""
    transform = data.GpuTrainTransform if config.data.decode == "gpu" else data.TrainTransform
    order = data.TrainBatches(
        len(images),
        config.train.batch_size(distributed.world_size()),
        seed=config.seed,
        accumulate=config.train.accumulate,
        repeats=config.augment.repeats,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        shuffled=images.shuffled,
    )
    return data.TrainLoader(
        images,
        [
            transform(size, **settings.preprocessing, **config.augment.transform)
            for size in config.augment.image_sizes or [config.data.image_size]
        ],
        data.Mixing(len(images.classes), **config.augment.mixing),
        order,
        epochs=config.train.epochs,
        workers=config.data.workers,
        device=device,
        max_broken=config.data.max_broken,
    )


def eval_batches(
    config: TrainConfig, images: data.Images, settings: DataSettings, resolution: int, device: torch.device
) -> data.EvalLoader:
    """This process's share of the validation images, at a resolution."""
    return data.EvalLoader(
        images,
        data.EvalTransform(resolution, config.crop_ratio, **settings.preprocessing),
        config.train.batch_size(distributed.world_size()),
        workers=config.data.workers,
        device=device,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def new_state(
    config: TrainConfig, images: data.Images, device: torch.device, pretrained: str | bool | None
) -> TrainingState:
    """The state before the first update."""
    classes = images.classes
    torch.manual_seed(config.seed)
    with given_as("pretrained"), distributed.main_first():
        model = create_model(
            config.model.entry, num_classes=len(classes), pretrained=pretrained, **config.model.options
        )
    if config.train.grad_checkpointing:
        switch_on_checkpointing(model)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    task = TASKS[config.task.name](model, len(classes), **config.task.options).to(device)
    distributed.synchronise_batchnorm(task, device)
    freeze(task.model, config.train.freeze)
    return TrainingState(
        task,
        new_optimizer(config, task),
        scaler=grad_scaler(device, config.train.precision),
        ema=None if config.train.ema_decay is None else ModelEmaV3(task, decay=config.train.ema_decay),
        identity={
            "config": config.model_dump(),
            "classes": classes,
            "tracker": new_run_id(),
            "order": {
                "data": config.data.name,
                "the number of images": len(images),
                "augment.repeats": config.augment.repeats,
                "train.global_batch_size": config.train.global_batch_size,
                "seed": config.seed,
                **images.order,
            },
        },
    )


def new_optimizer(config: TrainConfig, module: torch.nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(
        module,
        name=config.optim.name,
        lr=peak_lr(config.optim.lr, config.train.global_batch_size),
        weight_decay=config.optim.weight_decay,
        options=config.optim.options,
        layer_decay=config.optim.layer_decay,
    )


def make_trainer(config: TrainConfig, state: TrainingState, batches_per_epoch: int, device: torch.device) -> Trainer:
    """How an update is made, as conf/optim and train.* have it."""
    schedule = make_schedule(
        state.optimizer,
        epochs=config.train.epochs,
        updates_per_epoch=batches_per_epoch // config.train.accumulate,
        **config.optim.schedule,
    )
    with distributed.main_first():
        state.task.begin_training(device)
    if config.train.compile:
        compile_model(state.task.model)
    return Trainer(
        state,
        module=distributed.parallelise(state.task, device),
        schedule=schedule,
        device=device,
        precision=config.train.precision,
        global_batch_size=config.train.global_batch_size,
        accumulate=config.train.accumulate,
        clip_norm=config.optim.clip_norm,
        log_every=config.train.log_every,
        seed=config.seed,
        frozen=frozen_parts(state.task.model, config.train.freeze),
    )


def open_run(config: TrainConfig, folder: RunFolder, state: TrainingState) -> Recorder:
    """Make the run's folder, or go on in it, and open what is recorded there."""
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
@guarded(data.DataError, data.WorkerKilledError)
def main(raw: DictConfig) -> float:
    return train(read_config(TrainConfig, raw, TABLES))


if __name__ == "__main__":
    run(main, every_key(TrainConfig, TABLES))
