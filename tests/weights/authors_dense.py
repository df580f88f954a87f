"""Writes a detector or a segmenter as the authors' files hold it: with the key names of mmdetection and mmsegmentation.

It follows their list of names and knows nothing of xcit/weights/dense.py.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

import xcit
from xcit.engine.task import Target, Task
from xcit.tasks.detect import Detect
from xcit.tasks.segment import Segment

OBJECTS = ("circle", "rectangle", "triangle")
SURFACES = ("ground", "red", "green", "blue")
WEIGHT_BIAS = ("weight", "bias")
NORM = (*WEIGHT_BIAS, "running_mean", "running_var", "num_batches_tracked")


def backbone(patch_size: int) -> nn.Module:
    return xcit.create_model("xcit_n12", num_classes=0, depth=3, dim=32, heads=2, patch_size=patch_size)


def scattered(task: Task) -> Task:
    """The task with other weights and statistics than the initial ones, in evaluation mode."""
    for name, value in task.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(0.05 * torch.randn_like(value))
        else:
            value.fill_(7)
    return task.eval()


def detector(patch_size: int = 16, seed: int = 0, classes: tuple[str, ...] = OBJECTS, **options: object) -> Task:
    torch.manual_seed(seed)
    small = {"channels": 16, "proposals": 50, "anchor_scale": 4.0, "score_threshold": 0.0} | options
    return scattered(Detect(backbone(patch_size), Target("boxes", classes), **small))


def segmenter(
    head: str, patch_size: int = 16, seed: int = 0, classes: tuple[str, ...] = SURFACES, **options: object
) -> Task:
    torch.manual_seed(seed)
    return scattered(Segment(backbone(patch_size), Target("mask", classes), **{"channels": 16, "head": head} | options))


def authors_content(task: Task) -> dict[str, object]:
    """The content of the file that the authors' code would save of this task."""
    state = task.state_dict()
    names = list(detector_names(state) if isinstance(task, Detect) else segmenter_names(state))
    renamed = {**of_backbone(state), **{theirs: state[ours] for theirs, ours in names}}
    if isinstance(task, Detect):
        for kind in WEIGHT_BIAS:  # the background is last, and neither has a box nor a mask
            head = "roi_head.bbox_head"
            scores = renamed[f"{head}.fc_cls.{kind}"]
            renamed[f"{head}.fc_cls.{kind}"] = scores.roll(-1, 0)
            renamed[f"{head}.fc_reg.{kind}"] = renamed[f"{head}.fc_reg.{kind}"][4:]
            masks = "roi_head.mask_head.conv_logits"
            renamed[f"{masks}.{kind}"] = renamed[f"{masks}.{kind}"][1:]
    meta = {"mmdet_version": "2.11.0", "CLASSES": tuple(task.target.classes), "epoch": 36}
    copies = {key: value.clone() for key, value in renamed.items()}
    return {"meta": meta, "state_dict": copies, "optimizer": {"state": {}, "param_groups": []}}


def of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters have the backbone's prefix, as has everything in it."""
    found = {}
    for key, value in state.items():
        if key.startswith("model.model."):
            inner = key[len("model.model.") :]
            found["backbone." + (inner if inner[:10] != "pos_embed." else "pos_embeder." + inner[10:])] = value
        elif key.startswith("model.fpn"):
            found["backbone." + key[len("model.") :]] = value
    return found


def fpn_names(ours: str) -> Iterator[tuple[str, str]]:
    for level in range(4):
        for kind in WEIGHT_BIAS:
            yield f"neck.lateral_convs.{level}.conv.{kind}", f"{ours}.inner_blocks.{level}.0.{kind}"
            yield f"neck.fpn_convs.{level}.conv.{kind}", f"{ours}.layer_blocks.{level}.0.{kind}"


def detector_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """(the authors' name, ours) of everything besides the backbone."""
    yield from fpn_names("heads.neck")
    box, mask = "roi_head.bbox_head", "roi_head.mask_head"
    parts = [
        ("rpn_head.rpn_conv", "heads.rpn.head.conv.0.0"),
        ("rpn_head.rpn_cls", "heads.rpn.head.cls_logits"),
        ("rpn_head.rpn_reg", "heads.rpn.head.bbox_pred"),
        (f"{box}.shared_fcs.0", "heads.roi_heads.box_head.fc6"),
        (f"{box}.shared_fcs.1", "heads.roi_heads.box_head.fc7"),
        (f"{box}.fc_cls", "heads.roi_heads.box_predictor.cls_score"),
        (f"{box}.fc_reg", "heads.roi_heads.box_predictor.bbox_pred"),
        *((f"{mask}.convs.{number}.conv", f"heads.roi_heads.mask_head.{number}.0") for number in range(4)),
        (f"{mask}.upsample", "heads.roi_heads.mask_predictor.conv5_mask"),
        (f"{mask}.conv_logits", "heads.roi_heads.mask_predictor.mask_fcn_logits"),
    ]
    for theirs, ours in parts:
        for kind in WEIGHT_BIAS:
            yield f"{theirs}.{kind}", f"{ours}.{kind}"


def segmenter_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """The heads of segmentation have the authors' names already, besides the FPN."""
    if "decode_head.neck.inner_blocks.0.0.weight" in state:
        yield from fpn_names("decode_head.neck")
        blocks = [
            f"decode_head.scale_heads.{i}.{j}" for i, js in enumerate(((0,), (0,), (0, 2), (0, 2, 4))) for j in js
        ]
    else:
        blocks = [f"decode_head.psp_modules.{i}.1" for i in range(4)]
        blocks += [f"decode_head.{kind}.{i}" for kind in ("lateral_convs", "fpn_convs") for i in range(3)]
        blocks += ["decode_head.bottleneck", "decode_head.fpn_bottleneck"]
    classifiers = ["decode_head.conv_seg"]
    if "auxiliary_head.conv_seg.weight" in state:
        blocks.append("auxiliary_head.convs.0")
        classifiers.append("auxiliary_head.conv_seg")
    for block in blocks:
        for name in ("conv.weight", *(f"bn.{kind}" for kind in NORM)):
            yield f"{block}.{name}", f"{block}.{name}"
    for classifier in classifiers:
        for kind in WEIGHT_BIAS:
            yield f"{classifier}.{kind}", f"{classifier}.{kind}"
