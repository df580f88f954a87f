"""What a turn of scripts/benchmark.py runs: inference or a training step, as the users of each library run it."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import xcit
from scripts.measurements import Step
from xcit.engine.cuda_graph import WARM_UP, CapturedPass
from xcit.engine.optimizer import make_optimizer
from xcit.export.files import write_file
from xcit.export.formats import format_named
from xcit.export.program import Exportable, require_exportable, signature
from xcit.models.fast.compiling import compile_model
from xcit.models.fast.exported import exported_form
from xcit.preprocessing import Preprocessing


@dataclass(frozen=True)
class Figure:
    """What a turn measures, in images/s."""

    training: bool
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    checkpointed: bool = False
    """Gradient checkpointing in our model only. It is compared with timm's plain step."""
    graph: bool = False
    """Our forward and backward pass as one CUDA graph, as train.cuda_graph=true runs them."""
    timm_mode: str | None = None
    """The mode of torch.compile for timm's model."""

    @property
    def needs_gpu(self) -> bool:
        return self.graph or self.timm_mode is not None

    @property
    def warm_up(self) -> int:
        """Steps before the first that is timed, besides those of `in_turns`: to capture CUDA graphs."""
        return WARM_UP + 1 if self.needs_gpu else 0

    def step(self, model: nn.Module, images: Tensor) -> Step:
        """The step to time. It may change the model, which must not be used for anything else afterwards."""
        ours = isinstance(model, xcit.XCiT)
        if isinstance(model, xcit.XCiT) and not self.training:
            model = xcit.fuse_for_inference(model)
        if self.checkpointed and isinstance(model, xcit.XCiT):
            model.set_grad_checkpointing()
        if self.compiled and self.timm_mode and not ours:
            model.compile(mode=self.timm_mode)
        elif self.compiled:
            compile_model(model)
        step = training(model, images, ours, self.graph) if self.training else inference(model, images)

        def cast() -> object:
            if self.timm_mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                return step()

        return cast


TIMED = {
    "inference": Figure(training=False),
    "training": Figure(training=True),
    "inference_bf16": Figure(training=False, dtype=torch.bfloat16),
    "training_bf16": Figure(training=True, dtype=torch.bfloat16),
    "inference_compiled": Figure(training=False, compiled=True),
    "training_compiled": Figure(training=True, compiled=True),
    "training_checkpointed": Figure(training=True, checkpointed=True),
    "inference_bf16_compiled": Figure(training=False, dtype=torch.bfloat16, compiled=True),
    "training_bf16_compiled": Figure(training=True, dtype=torch.bfloat16, compiled=True),
    "training_bf16_graph": Figure(training=True, dtype=torch.bfloat16, graph=True),
    "training_bf16_compiled_graph": Figure(training=True, dtype=torch.bfloat16, compiled=True, graph=True),
    **{
        f"{what}_bf16_{name}": Figure(training, torch.bfloat16, compiled=True, graph=training, timm_mode=mode)
        for name, mode in (("reduce_overhead", "reduce-overhead"), ("autotuned", "max-autotune-no-cudagraphs"))
        for what, training in (("training", True), ("inference", False))
    },
}
"""The last four compare our compiled model, in training as a CUDA graph, with timm's in other modes of the compiler."""

EXPORTED = {"inference_onnx": "onnx", "inference_aoti": "aoti"}
"""Figure → the format of our export, which is measured in turns with our eager model and timm's."""


def exported_inference(model: nn.Module, format: str, images: Tensor) -> Step:  # noqa: A002
    """Inference by a file as scripts/export.py writes it: for any number of images of any size."""
    preprocessing = Preprocessing.of_model(model).at((images.shape[-2], images.shape[-1]))
    model = exported_form(require_exportable(model, preprocessing))
    exportable, file_format, patch_size = (
        Exportable(model, preprocessing, False),
        format_named(format),
        model.patch_size,
    )
    with TemporaryDirectory() as folder:
        path = write_file(exportable, signature(exportable, patch_size), file_format, Path(folder), patch_size)
        run = file_format.open(path)
    return lambda: run(images)


def inference(model: nn.Module, images: Tensor) -> Step:
    model.eval()

    @torch.inference_mode()
    def step() -> Tensor:
        return model(images)

    return step


class Batch(NamedTuple):
    images: Tensor
    targets: Tensor


def training(model: nn.Module, images: Tensor, ours: bool, graph: bool = False) -> Step:
    """An update as in train.py: forward, backward, clipping, AdamW, EMA. graph: see `Figure`."""
    model.train()
    targets = torch.full((len(images), 1000), 1e-3, device=images.device)
    if ours:
        optimizer = make_optimizer(model, name="adamw", lr=1e-4, weight_decay=0.05, options={})
    else:
        # On a GPU both sides have the same optimizer. On a CPU timm's users get PyTorch's default.
        fused = {"fused": True} if images.is_cuda else {}
        optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, **fused)
    ema = ModelEmaV3(model, decay=0.999)

    def forward_backward(batch: Batch) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(batch.images), batch.targets)
        loss.backward()
        return {"loss": loss.detach()}

    learn = CapturedPass(forward_backward, model) if graph and ours else forward_backward

    def step() -> None:
        learn(Batch(images, targets))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

    return step
