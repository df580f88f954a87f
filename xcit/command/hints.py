"""What an unknown key probably means: the words of other tools, the same word elsewhere, or a misspelt key."""

import difflib
from collections.abc import Collection

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
    "half": ("train.precision", "precision"),
    "drop_path": ("model.drop_path_rate",),
    "clip_grad": ("optim.clip_norm",),
    "grad_clip": ("optim.clip_norm",),
    "weights": ("pretrained", "checkpoint"),
    "finetune": ("pretrained",),
    "initial_checkpoint": ("pretrained",),
    "init_from": ("pretrained",),
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
NEAR = 0.75
"""Least similarity of a key that is suggested for another, as difflib measures it. train.epoch is near train.epochs;
train.early_stopping is not near train.channels_last."""


def suggestion(key: str, known: Collection[str]) -> str:
    """'; did you mean optim.lr?', or '' if nothing is near.

    known: the keys and groups of the command.
    """
    found = candidates(key, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def candidates(key: str, known: Collection[str]) -> list[str]:
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
