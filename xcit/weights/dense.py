"""The authors' detectors and segmenters: files of mmdetection 2.11 and mmsegmentation 0.11, with key names of ours."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..class_names import ADE20K, COCO
from .formats import State, Weights, state_dict

# Regular expression for a key of the authors → our key in the task; None: ours has no such part.
BACKBONE = {
    r"backbone\.(cls_token|cls_attn_blocks\..+|norm\..+|head\..+)": None,
    r"backbone\.(fpn\d\..+)": r"model.\1",
    r"backbone\.pos_embeder\.(.+)": r"model.model.pos_embed.\1",
    r"backbone\.(.+)": r"model.model.\1",
}
TASKS: dict[str, dict[str, str | None]] = {
    "detect": BACKBONE
    | {
        r"neck\.lateral_convs\.(\d)\.conv\.(.+)": r"heads.neck.inner_blocks.\1.0.\2",
        r"neck\.fpn_convs\.(\d)\.conv\.(.+)": r"heads.neck.layer_blocks.\1.0.\2",
        r"rpn_head\.rpn_conv\.(.+)": r"heads.rpn.head.conv.0.0.\1",
        r"rpn_head\.rpn_cls\.(.+)": r"heads.rpn.head.cls_logits.\1",
        r"rpn_head\.rpn_reg\.(.+)": r"heads.rpn.head.bbox_pred.\1",
        r"roi_head\.bbox_head\.shared_fcs\.0\.(.+)": r"heads.roi_heads.box_head.fc6.\1",
        r"roi_head\.bbox_head\.shared_fcs\.1\.(.+)": r"heads.roi_heads.box_head.fc7.\1",
        r"roi_head\.bbox_head\.fc_cls\.(.+)": r"heads.roi_heads.box_predictor.cls_score.\1",
        r"roi_head\.bbox_head\.fc_reg\.(.+)": r"heads.roi_heads.box_predictor.bbox_pred.\1",
        r"roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)": r"heads.roi_heads.mask_head.\1.0.\2",
        r"roi_head\.mask_head\.upsample\.(.+)": r"heads.roi_heads.mask_predictor.conv5_mask.\1",
        r"roi_head\.mask_head\.conv_logits\.(.+)": r"heads.roi_heads.mask_predictor.mask_fcn_logits.\1",
    },
    "segment": BACKBONE
    | {
        r"neck\.lateral_convs\.(\d)\.conv\.(.+)": r"decode_head.neck.inner_blocks.\1.0.\2",
        r"neck\.fpn_convs\.(\d)\.conv\.(.+)": r"decode_head.neck.layer_blocks.\1.0.\2",
        r"((decode_head|auxiliary_head)\..+)": r"\1",
    },
}
# How their images are made for inference. They resized bilinearly.
INPUT = {"resize": "shortest", "crop_ratio": 1.0, "interpolation": "bilinear"}
SIZES = {"detect": (800, 1333), "segment": (512, 2048)}
CLASSIFIERS = {"detect": "roi_head.bbox_head.fc_cls.bias", "segment": "decode_head.conv_seg.bias"}
CLASSES = {("detect", len(COCO)): COCO, ("segment", len(ADE20K)): ADE20K}


def is_dense(content: Mapping[str, Any]) -> bool:
    """Whether it is the content of such a file: a backbone with heads, bare or under "state_dict"."""
    return "backbone" in parts_of(content) and task_name(content) is not None


def whole_task(content: Mapping[str, Any], origin: str) -> Weights:
    """The weights of the whole task in such a file, with the names of `Detect` or `Segment`."""
    state, name = in_file(content, origin), task_name(content)
    assert name is not None
    classifier = state.get(CLASSIFIERS[name])
    num_classes = 0 if classifier is None else len(classifier) - (name == "detect")
    meta = content.get("meta")
    classes = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(classes, list | tuple) or len(classes) != num_classes:
        classes = CLASSES.get((name, num_classes))
    return Weights(
        origin,
        {"raw": in_our_form(state, name)},
        input_values=INPUT | {"size": SIZES[name]},
        classes=[str(one).strip() for one in classes] if classes else None,
        task=task_options(state, name),
    )


def backbone_alone(content: Mapping[str, Any], origin: str) -> Weights:
    """The weights of the model in such a file. It has neither class attention nor a final norm."""
    prefix = "model.model."
    whole = in_our_form(in_file(content, origin), str(task_name(content)))
    return Weights(origin, {"raw": {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}})


def key_table(content: Mapping[str, Any], origin: str) -> list[dict[str, str]]:
    """A row for each key of such a file: "authors" and "ours". The latter is empty if ours has no such part."""
    name = str(task_name(content))
    return [{"authors": key, "ours": our_key(key, name) or ""} for key in in_file(content, origin)]


def in_file(content: Mapping[str, Any], origin: str) -> State:
    return state_dict(content.get("state_dict", content), origin)


def parts_of(content: Mapping[str, Any]) -> set[str]:
    """The first part of each key."""
    state = content.get("state_dict", content)
    return (
        {str(key).removeprefix("module.").partition(".")[0] for key in state} if isinstance(state, Mapping) else set()
    )


def task_name(content: Mapping[str, Any]) -> str | None:
    parts = parts_of(content)
    return "detect" if "rpn_head" in parts else "segment" if "decode_head" in parts else None


def task_options(state: State, name: str) -> dict[str, Any]:
    """The task's name, and those of its options that the keys tell."""
    if name == "detect":
        return {"name": name}
    if not any(key.startswith("decode_head.psp_modules.") for key in state):
        return {"name": name, "head": "semantic_fpn"}
    has_auxiliary_head = any(key.startswith("auxiliary_head.") for key in state)
    return {"name": name, "head": "upernet"} | ({} if has_auxiliary_head else {"aux_weight": 0.0})


def in_our_form(state: State, name: str) -> State:
    """Rename the keys of a file, and reorder the rows of the detector's last layers for our background.

    A key that is unknown stays; then `load_exactly` lists it.
    """
    renamed: State = {}
    for key, value in state.items():
        ours = our_key(key, name)
        if ours is not None:
            renamed[ours] = with_background(ours, value)
    # The authors' SyncBatchNorm counts the batches, as ours does; files of older versions do not.
    for key in [key for key in renamed if key.endswith(".running_var")]:
        renamed.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return renamed


def our_key(key: str, name: str) -> str | None:
    """Our key for one of the authors' in the file of a task; None if ours has no such part."""
    for pattern, ours in TASKS[name].items():
        found = re.fullmatch(pattern, key)
        if found:
            return None if ours is None else found.expand(ours)
    return key


def with_background(key: str, value: Tensor) -> Tensor:
    """The rows of a detector's last layers: class 0 is torchvision's background, and mmdetection's classes follow.

    mmdetection has its background last, and none for boxes and masks. There ours gets zeros, which nothing reads: no
    detection is background, and only regions with an object have losses of boxes and masks.
    """
    if ".cls_score." in key:
        return torch.cat([value[-1:], value[:-1]])
    rows = 4 if ".box_predictor.bbox_pred." in key else 1 if ".mask_fcn_logits." in key else 0
    return torch.cat([value.new_zeros(rows, *value.shape[1:]), value]) if rows else value
