"""What an unknown key probably means: the words of other tools, the same word elsewhere, or a misspelt key."""

import difflib
import re
from collections.abc import Collection

from ..errors import NEAR, did_you_mean

# What other tools call a setting → what it is called here. Those that a command has are suggested.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("optim.lr",),
    "learning_rate": ("optim.lr",),
    "wd": ("optim.weight_decay",),
    "opt": ("optim",),
    "optimizer": ("optim",),
    "batch": ("train.global_batch_size", "batch_size"),
    "batch_size": ("train.global_batch_size", "batch_size"),
    "bs": ("train.global_batch_size", "batch_size"),
    "epoch": ("train.epochs",),
    "max_epochs": ("train.epochs",),
    "num_epochs": ("train.epochs",),
    "max_steps": ("train.updates",),
    "steps": ("train.updates",),
    "amp": ("train.precision", "precision"),
    "fp16": ("train.precision", "precision"),
    "bf16": ("train.precision", "precision"),
    "ema": ("train.ema_decay", "weights"),
    "model_ema": ("train.ema_decay", "weights"),
    "scheduler": ("optim",),
    "sched": ("optim",),
    "half": ("train.precision", "precision"),
    "drop_path": ("model.drop_path_rate",),
    "clip_grad": ("optim.clip_norm",),
    "grad_clip": ("optim.clip_norm",),
    "weights": ("pretrained", "checkpoint"),
    "finetune": ("pretrained",),
    "initial_checkpoint": ("pretrained",),
    "checkpoint": ("resume", "pretrained"),
    "resume": ("checkpoint",),
    "run": ("checkpoint",),
    "ckpt": ("checkpoint", "resume", "pretrained"),
    "model_path": ("checkpoint", "resume", "pretrained"),
    "path": ("data.root",),
    "root": ("data.root",),
    "dataset": ("data",),
    "data_dir": ("data.root",),
    "data_path": ("data.root",),
    "data.path": ("data.root",),
    "num_workers": ("data.workers",),
    "imgsz": ("data.image_size", "resolutions"),
    "img_size": ("data.image_size", "resolutions"),
    "input_size": ("data.image_size", "resolutions"),
    "resolution": ("resolutions", "data.image_size"),
    "crop_pct": ("crop_ratio",),
    "output": ("run_dir",),
    "output_dir": ("run_dir",),
    "out": ("run_dir",),
    "save_dir": ("run_dir",),
    "aug": ("augment",),
    "augmentation": ("augment",),
    "aa": ("augment.rand_augment",),
    "reprob": ("augment.erase_prob",),
    "smoothing": ("augment.label_smoothing",),
    "arch": ("model",),
    "backbone": ("model",),
    "config": ("recipe",),
    "tracker": ("logger",),
    "wandb": ("logger",),
}
NO_SETTINGS = {
    "device": "a run uses the GPU if there is one; CUDA_VISIBLE_DEVICES in the environment chooses it",
    "gpus": "torchrun --nproc-per-node=N runs a command on N GPUs",
    "num_classes": "it follows from the data set",
}
"""Words of other tools for what is no setting here."""
LONG_NAME = re.compile(r"xcit_(nano|tiny|small|medium|large)_(12|24)_p(8|16)(_\w+)?", re.IGNORECASE)


def suggest_key(key: str, known: Collection[str]) -> str:
    """'; did you mean optim.lr?', or '' if nothing is near.

    known: the keys and groups of the command.
    """
    if key in NO_SETTINGS:
        return f"; {NO_SETTINGS[key]}"
    found = find_candidates(key, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def find_candidates(key: str, known: Collection[str]) -> list[str]:
    """The keys that are probably meant, at most three."""
    section, _, name = key.replace("-", "_").rpartition(".")
    for word in (f"{section}.{name}", name):
        found = [target for target in SYNONYMS.get(word.lstrip("."), ()) if target in known]
        if found:
            return found
    elsewhere = [other for other in known if other.rpartition(".")[2] == name and other != key]
    if elsewhere:
        return elsewhere[:3]
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    near = difflib.get_close_matches(name, beside, n=1, cutoff=NEAR)
    if near:
        return [beside[near[0]]]
    return [
        other
        for other in difflib.get_close_matches(key, known, n=1, cutoff=NEAR)
        if difflib.SequenceMatcher(None, name, other.rpartition(".")[2]).ratio() >= NEAR
    ]


def suggest_model(name: str, choices: Collection[str]) -> str:
    """What to type instead of model=NAME, where conf/model has no such file."""
    long = LONG_NAME.fullmatch(name)
    if long:
        return f"; did you mean model=xcit_{long[1][0].lower()}{long[2]} model.patch_size={long[3]}?"
    near = did_you_mean(name, choices)
    return near or f"; a model of timm is given as model=timm model.name={name}"
