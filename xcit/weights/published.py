"""The tables of published weights: 42 classifiers, 4 backbones trained by DINO, 8 detectors and 16 segmenters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import choose

HOST = "https://dl.fbaipublicfiles.com/xcit/"
WIDTHS = {"n": "nano", "t": "tiny", "s": "small", "m": "medium", "l": "large"}

# ImageNet-1k top-1 in percent, from the authors' table: 224 pixels; 224 pixels, distilled; 384 pixels, distilled.
TOP1 = {
    ("xcit_n12", 16): (69.9, 72.2, 75.4),
    ("xcit_t12", 16): (77.1, 78.6, 80.9),
    ("xcit_t24", 16): (79.4, 80.4, 82.6),
    ("xcit_s12", 16): (82.0, 83.3, 84.7),
    ("xcit_s24", 16): (82.6, 83.9, 85.1),
    ("xcit_m24", 16): (82.7, 84.3, 85.4),
    ("xcit_l24", 16): (82.9, 84.9, 85.8),
    ("xcit_n12", 8): (73.8, 76.3, 77.8),
    ("xcit_t12", 8): (79.7, 81.2, 82.4),
    ("xcit_t24", 8): (81.9, 82.6, 83.7),
    ("xcit_s12", 8): (83.4, 84.2, 85.1),
    ("xcit_s24", 8): (83.9, 84.9, 85.6),
    ("xcit_m24", 8): (83.7, 85.1, 85.8),
    ("xcit_l24", 8): (84.4, 85.4, 86.0),
}
# (k-NN, linear) top-1 in percent of the frozen backbones.
DINO = {
    ("xcit_s12", 16): (76.0, 77.8),
    ("xcit_s12", 8): (77.1, 79.2),
    ("xcit_m24", 16): (76.4, 78.8),
    ("xcit_m24", 8): (77.9, 80.3),
}
DINO_AT_384 = ("xcit_m24", 8, 80.9)
"""Model, patch size and linear top-1 in percent, of a frozen backbone at 384 pixels."""
# COCO's box and mask mAP (Mask R-CNN), ADE20k's mIoU (Semantic FPN, UperNet), from the authors' tables.
DENSE = {
    ("xcit_t12", 16): (42.7, 38.5, 38.1, 41.5),
    ("xcit_t12", 8): (44.5, 40.3, 39.9, 43.5),
    ("xcit_s12", 16): (45.3, 40.8, 43.9, 45.9),
    ("xcit_s12", 8): (47.0, 42.3, 44.2, 46.6),
    ("xcit_s24", 16): (46.5, 41.8, 44.6, 46.9),
    ("xcit_s24", 8): (48.1, 43.0, 47.1, 48.1),
    ("xcit_m24", 16): (46.7, 42.0, 45.9, 47.6),
    ("xcit_m24", 8): (48.5, 43.7, 46.9, 48.4),
}


@dataclass(frozen=True)
class Published:
    """One file of weights, with its published accuracy."""

    model: str
    patch_size: int
    tag: str
    """The training: fb_in1k, fb_dist_in1k or fb_dist_in1k_384 for classifiers, fb_dino for backbones, fb_maskrcnn_coco
    for detectors, fb_sem_fpn_ade20k or fb_upernet_ade20k for segmenters."""
    file: str
    """The authors' file name."""
    timm_name: str | None
    """The name of the same weights on the Hugging Face hub, without timm/."""
    input_size: int
    """The image size in pixels of the published accuracy."""
    top1: float | None = None
    """ImageNet-1k top-1 in percent."""
    knn: float | None = None
    linear: float | None = None
    """k-NN and linear top-1 in percent; backbones only."""
    box_map: float | None = None
    mask_map: float | None = None
    """COCO's mAP of boxes and masks in percent; detectors only."""
    miou: float | None = None
    """ADE20k's mean IoU in percent; segmenters only."""
    folder: str = ""
    """Where on the host the file lies."""

    @property
    def name(self) -> str:
        """The architecture and the tag, such as xcit_s12_p16.fb_dist_in1k_384."""
        return f"{self.model}_p{self.patch_size}.{self.tag}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of the model, as in conf/model/."""
        return {"name": self.model, "patch_size": self.patch_size, "image_size": self.input_size}

    @property
    def url(self) -> str:
        return HOST + self.folder + self.file


def long_name(model: str, patch_size: int) -> str:
    """The name that the authors and timm use: xcit_s12 with patch size 16 → xcit_small_12_p16."""
    width, depth = model.removeprefix("xcit_")[0], model[-2:]
    return f"xcit_{WIDTHS[width]}_{depth}_p{patch_size}"


def classifiers() -> Iterator[Published]:
    for (model, patch_size), (plain, distilled, fine_tuned) in TOP1.items():
        for tag, size, top1 in (
            ("fb_in1k", 224, plain),
            ("fb_dist_in1k", 224, distilled),
            ("fb_dist_in1k_384", 384, fine_tuned),
        ):
            stem = f"{long_name(model, patch_size)}_{size}"
            file = f"{stem}{'_dist' if 'dist' in tag else ''}.pth"
            timm_name = f"{stem}.{tag.removesuffix('_384')}"
            yield Published(model, patch_size, tag, file, timm_name, size, top1=top1)


def backbones() -> Iterator[Published]:
    for (model, patch_size), (knn, linear) in DINO.items():
        file = f"{long_name(model, patch_size).replace('_p', '_cp')}_dino.pth"
        yield Published(model, patch_size, "fb_dino", file, None, 224, knn=knn, linear=linear)


def detectors_and_segmenters() -> Iterator[Published]:
    for (model, patch_size), (box_map, mask_map, semantic_fpn, upernet) in DENSE.items():
        long = f"{long_name(model, patch_size)}.pth"
        for tag, file, size, folder, figures in (
            ("fb_maskrcnn_coco", f"maskrcnn_{long}", 800, "coco/", {"box_map": box_map, "mask_map": mask_map}),
            ("fb_sem_fpn_ade20k", f"sem_fpn_{long}", 512, "ade/", {"miou": semantic_fpn}),
            ("fb_upernet_ade20k", f"upernet_{long}", 512, "ade/", {"miou": upernet}),
        ):
            yield Published(model, patch_size, tag, file, None, size, folder=folder, **figures)


PUBLISHED = {entry.name: entry for entry in (*classifiers(), *backbones())}
"""The weights of models alone, by our names."""
PUBLISHED_DENSE = {entry.name: entry for entry in detectors_and_segmenters()}
"""Those of whole detectors and segmenters."""
BY_FILE = {entry.file: entry for entry in (*PUBLISHED.values(), *PUBLISHED_DENSE.values())}
BY_TIMM_NAME = {entry.timm_name: entry for entry in PUBLISHED.values() if entry.timm_name}


def find_published(name: str) -> Published | None:
    """Find an entry by our name, by the authors' file name (with or without .pth, also in a path) or by timm's name.

    Our name and the authors' name mean the authors' file; timm's name means the copy on the hub.
    """
    last = name.rpartition("/")[2]
    ours = PUBLISHED.get(name) or PUBLISHED_DENSE.get(name)
    return ours or BY_FILE.get(last) or BY_FILE.get(f"{last}.pth") or BY_TIMM_NAME.get(last)


def list_pretrained(model: str | None = None) -> list[str]:
    """The names of the published weights, of all models or of one. `load_weights` takes these names.

    It also takes those of detectors and segmenters, which are not listed, for their backbones.
    """
    if model is not None:
        choose({entry.model: entry for entry in PUBLISHED.values()}, model, "model")
    return [name for name, entry in PUBLISHED.items() if model in (None, entry.model)]
