"""The paper's tables and figures, row by row: the published number, and the command that reproduces it.

`scripts/reproduce.py` prints them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from xcit.models.ablations import ABLATIONS, as_overrides
from xcit.weights.published import DINO_AT_384, PUBLISHED, PUBLISHED_DENSE, Published, long_name

SIZES = "'resolutions=[160,192,224,256,288,320,384,448,512]'"
OTHERS = (  # with the tags of timm's weights
    "resnet50.a1_in1k",
    "regnety_160.deit_in1k",
    "deit_small_patch16_224.fb_in1k",
    "cait_s24_224.fb_dist_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
)
ON_IMAGENET = "data=imagenet data.root=$IMAGENET"
DENSE_RUNS = {  # tag of the weights → data set, recipe if it is not the data set's, and what is trained
    "fb_maskrcnn_coco": ("coco", "", "Mask R-CNN for 36 epochs"),
    "fb_sem_fpn_ade20k": ("ade20k", "", "Semantic FPN for 80,000 updates"),
    "fb_upernet_ade20k": ("ade20k", "recipe=ade20k_upernet", "UperNet for 160,000 updates"),
}
HOWS = {"knn": "k-NN", "linear": "linear"}
TRANSFER_SETS = ("cifar10", "cifar100", "flowers", "cars", "inat data.year=2018", "inat data.year=2019")
BEYOND = {  # recipe → the recipe that continues it
    "deit3": "deit3_finetune_384",
    "small_long": None,
    "muon": None,
    "low_resolution": "low_resolution_finetune",
    "progressive": None,
}


@dataclass(frozen=True)
class Row:
    """One number of the paper."""

    model: str
    what: str
    command: str | None
    """None: not built yet."""
    published: Mapping[str, float | None] = field(default_factory=dict)
    """Metric → value in percent; empty where none is known."""
    weights: str = ""
    """The file of the published weights that the row evaluates."""
    note: str = ""


def main_rows() -> Iterator[Row]:
    for entry in PUBLISHED.values():
        if entry.top1 is None:
            continue
        model = f"{entry.model}_p{entry.patch_size}"
        how = f"at {entry.input_size}{', distilled' if 'dist' in entry.tag else ''}"
        top1, stem = {"top-1": entry.top1}, entry.file.removesuffix(".pth")
        command = evaluation(stem, f"'resolutions=[{entry.input_size}]'")
        yield Row(model, f"{how}, evaluate", command, top1, entry.file)
        yield Row(model, f"{how}, train", training_of(entry), top1, note=doubts(entry))


def training_of(entry: Published) -> str:
    patch = "" if entry.patch_size == 16 else f"model.patch_size={entry.patch_size}"
    distilled = f"runs/{entry.model}_p{entry.patch_size}_dist"
    match entry.tag:
        case "fb_in1k":
            return training(entry.model, f"recipe=paper_p{entry.patch_size}")
        case "fb_dist_in1k":
            return training(entry.model, patch, "recipe=distill_hard", f"run_dir={distilled}")
        case _:
            return training(entry.model, patch, "recipe=finetune_384 task=distill", f"pretrained={distilled}")


def doubts(entry: Published) -> str:
    drop_path = ["drop_path_rate from memory"] if entry.model in ("xcit_t24", "xcit_l24") else []
    recipe = ["rate, batch and length unpublished, DeiT's taken"] if entry.input_size == 384 else []
    return "; ".join(drop_path + recipe)


def resolution_rows() -> Iterator[Row]:
    for patch_size in (16, 8):
        entry = PUBLISHED[f"xcit_s12_p{patch_size}.fb_in1k"]
        command = evaluation(entry.file.removesuffix(".pth"), SIZES)
        yield Row(f"xcit_s12_p{patch_size}", "evaluate", command, {"top-1 at 224": entry.top1}, entry.file)
    for tagged in ("deit_small_patch16_224.fb_in1k", "resnet50.a1_in1k"):
        yield Row(tagged.partition(".")[0], "evaluate", evaluation(f"timm/{tagged}", SIZES))


def ablation_rows() -> Iterator[Row]:
    base = {"top-1": PUBLISHED["xcit_s12_p16.fb_in1k"].top1}
    for what, options in ABLATIONS.values():
        command = training("xcit_s12", "recipe=paper_p16", *as_overrides(options))
        yield Row("xcit_s12_p16", f"{what}, train", command, {} if options else base)


def transfer_rows() -> Iterator[Row]:
    for model in ("xcit_s12", "xcit_s24", "xcit_m24"):
        for name in TRANSFER_SETS:
            command = f"torchrun --nproc-per-node=8 train.py model={model} data={name} data.root=$DATA"
            what = f"{name.replace('data.year=', '')}, fine-tune"
            yield Row(f"{model}_p16", what, f"{command} pretrained=fb_dist_in1k")


def comparison_rows() -> Iterator[Row]:
    for tagged in OTHERS:
        name = tagged.partition(".")[0]
        yield Row(name, "evaluate", evaluation(f"timm/{tagged}"))
        yield Row(name, "train with the paper's recipe", training("timm", f"model.name={name}"))


def cost_rows() -> Iterator[Row]:
    for patch_size in (16, 8):
        weights = f"{long_name('xcit_s12', patch_size)}_224.pth"
        yield Row(f"xcit_s12_p{patch_size}", "memory and time per image, by resolution", None, weights=weights)


def attention_rows() -> Iterator[Row]:
    entry = PUBLISHED["xcit_s12_p8.fb_in1k"]
    command = f"python scripts/show_attention.py {entry.file.removesuffix('.pth')} $PHOTO"
    yield Row("xcit_s12_p8", "class-attention maps of each head", command, weights=entry.file)


def dino_rows() -> Iterator[Row]:
    for entry in PUBLISHED.values():
        if entry.tag == "fb_dino":
            model, file = f"{entry.model}_p{entry.patch_size}", entry.file
            for how, value in (("knn", entry.knn), ("linear", entry.linear)):
                command = evaluation(file.removesuffix(".pth"), f"evaluate={how}", "'resolutions=[224]'")
                yield Row(model, f"{HOWS[how]} at 224, evaluate", command, {f"{HOWS[how]} top-1": value}, file)
            patch = "" if entry.patch_size == 16 else f"model.patch_size={entry.patch_size}"
            numbers = {"k-NN top-1": entry.knn, "linear top-1": entry.linear}
            command = training(entry.model, patch, "recipe=dino")
            yield Row(model, "pre-train", command, numbers, note="settings unpublished, those of DINO's ViT-S taken")
    model, patch_size, value = DINO_AT_384
    file = PUBLISHED[f"{model}_p{patch_size}.fb_dino"].file
    command = evaluation(file.removesuffix(".pth"), "evaluate=linear", "'resolutions=[384]'")
    yield Row(f"{model}_p{patch_size}", "linear at 384, evaluate", command, {"linear top-1": value}, file)


def dense_rows(tag: str) -> Iterator[Row]:
    """Detectors or segmenters: every model with weights of this tag."""
    data, recipe, what = DENSE_RUNS[tag]
    on_data = f"data={data} data.root=${data.upper()}"
    for entry in PUBLISHED_DENSE.values():
        if entry.tag == tag:
            model = f"{entry.model}_p{entry.patch_size}"
            metrics = {"box mAP": entry.box_map, "mask mAP": entry.mask_map, "mIoU": entry.miou}
            published = {name: value for name, value in metrics.items() if value is not None}
            stem, sizes = entry.file.removesuffix(".pth"), f"'resolutions=[{entry.input_size}]'"
            yield Row(model, f"{what}, evaluate", evaluation(stem, sizes, on=on_data), published, entry.file)
            patch = "" if entry.patch_size == 16 else f"model.patch_size={entry.patch_size}"
            drop_path = "model.drop_path_rate=0.2" if (model, tag) == ("xcit_m24_p8", "fb_sem_fpn_ade20k") else ""
            yield Row(model, f"{what}, train", training(entry.model, patch, drop_path, recipe, on=on_data), published)


def beyond_rows() -> Iterator[Row]:
    for recipe, after in BEYOND.items():
        folder = f"runs/xcit_s12_p16_{recipe}"
        run_dir = f"run_dir={folder}" if after else ""
        yield Row("xcit_s12_p16", recipe, training("xcit_s12", f"recipe={recipe}", run_dir))
        if after:
            command = training("xcit_s12", f"recipe={after}", f"pretrained={folder}")
            yield Row("xcit_s12_p16", f"{after}, continues it", command)


def training(model: str, *more: str, on: str = ON_IMAGENET) -> str:
    return " ".join([f"torchrun --nproc-per-node=8 train.py model={model} {on}", *filter(None, more)])


def evaluation(checkpoint: str, *more: str, on: str = ON_IMAGENET) -> str:
    return " ".join([f"python eval.py checkpoint={checkpoint} {on}", *more])


# name → (title, rows)
SECTIONS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "table2": ("Table 2 (its number from memory): ImageNet-1k, every published model", main_rows),
    "figure2": ("Figure 2 (its models from memory): peak memory and time", cost_rows),
    "figure3": ("Figure 3 (its models from memory): top-1 against test resolution", resolution_rows),
    "figure4": ("Figure 4 (its model from memory): attention maps", attention_rows),
    "table3": ("Table 3 (its number from memory): backbones trained by DINO, frozen", dino_rows),
    "table4": ("Table 4 and appendix: ablation (in one go: scripts/ablations.py)", ablation_rows),
    "table5": ("Table 5 (its number from memory): COCO, Mask R-CNN", partial(dense_rows, "fb_maskrcnn_coco")),
    "table6": ("Table 6 (its number from memory): ADE20k, Semantic FPN", partial(dense_rows, "fb_sem_fpn_ade20k")),
    "table7": ("Table 7 (its number from memory): ADE20k, UperNet", partial(dense_rows, "fb_upernet_ade20k")),
    "transfer": ("Transfer (models, rates and lengths are ours)", transfer_rows),
    "comparison": ("Comparison: other models through the same loop", comparison_rows),
    "beyond": ("Beyond the paper: no claim", beyond_rows),
}


def every_row() -> Iterator[tuple[str, Row]]:
    return ((name, row) for name, (_, rows) in SECTIONS.items() for row in rows())
