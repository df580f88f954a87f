"""Checkpoints of tiny untrained tasks, for what loads them."""

from pathlib import Path
from typing import Any

import torch

import xcit
from xcit.engine.ema import make_ema
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.state import TrainingState
from xcit.engine.task import Target, Task
from xcit.preprocessing import Preprocessing
from xcit.storage import write_tensors
from xcit.tasks import TASKS
from xcit.tasks.multilabel import Multilabel

CLASSES = ("circle", "square", "triangle")
MODEL: dict[str, Any] = {"name": "xcit_n12", "dim": 32, "depth": 3, "heads": 2, "patch_size": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "classify": {},
    "distill": {},
    # An untrained detector finds something everywhere.
    "detect": {"channels": 16, "proposals": 20, "max_detections": 8, "anchor_scale": 4.0},
    "segment": {"channels": 16},
    "multilabel": {},
    "regress": {},
}
SIZE = 64


def new_model(num_classes: int) -> xcit.XCiT:
    options = {key: value for key, value in MODEL.items() if key != "name"}
    return xcit.create_model(MODEL["name"], num_classes=num_classes, **options)


def new_task(name: str, classes: tuple[str, ...] = CLASSES) -> Task:
    torch.manual_seed(0)
    task_class = TASKS[name]
    units = {"mean": (1.0, 20.0, 300.0), "std": (0.1, 2.0, 30.0)} if name == "regress" else {}
    target = Target(task_class.target_kinds[0], classes, **units)
    task = task_class(new_model(task_class.num_outputs(target)), target, **OPTIONS[name])
    if isinstance(task, Multilabel):
        task.thresholds.copy_(torch.tensor([0.9, 0.1, 0.2]))
    return task


def write_checkpoint(path: Path, name: str, classes: tuple[str, ...] = CLASSES) -> Path:
    """Write the checkpoint of a run folder, as train.py does. Raw weights and their moving average differ."""
    task = new_task(name, classes)
    ema = make_ema(task, 0.5)
    assert ema is not None
    with torch.no_grad():
        for parameter in task.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    preprocessing = task.preprocessing(Preprocessing()).at(SIZE)
    identity = {"config": {"model": dict(MODEL), "task": {"name": name, **OPTIONS[name]}}, "classes": list(classes)}
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.0, options={})
    state = TrainingState(
        task, optimizer, grad_scaler(torch.device("cpu"), "fp32"), ema, identity, preprocessing=preprocessing
    )
    (path / "checkpoints").mkdir(parents=True)
    write_tensors(path / "checkpoints" / "last.pt", state.state_dict())
    return path
