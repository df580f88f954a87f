"""Measure an update of DINO: our task beside a plain formulation with timm's XCiT, in turns, in one process.

    python scripts/benchmark_dino.py                                             # s12/16, minutes on two CPU cores
    python scripts/benchmark_dino.py --model xcit_n12 --batch 8 --local-crops 4 --rounds 10

An update is that of train.py with task=dino: teacher and student on 2 global crops of 224 pixels and some local ones of
96, the loss, the backward pass, clipping, AdamW, and the teacher's moving average. The plain formulation is written as
in the paper's algorithm: a loop over pairs of crops for the loss, and a loop over parameters for clipping and for the
teacher. It runs the backbone either crop by crop, or once for the crops of each size, as DINO's code does. Both sides
have the same weights, and the losses of the first update are compared before anything is timed.
"""

import argparse
import copy
import statistics
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # because scripts/ and data/ are not installed

import xcit
from data.views.multi_crop import GLOBAL_CROPS, Crops
from scripts.measurements import Step, in_turns
from xcit.command import ArgumentParser, guarded
from xcit.engine.optimizer import clip_gradients, make_optimizer
from xcit.engine.task import Position, Target
from xcit.errors import TrainingError
from xcit.tables import show_table
from xcit.tasks.dino import FIRST_TEMPERATURE, Dino
from xcit.tasks.dino_head import DinoHead
from xcit.weights.published import long_name

GLOBAL_SIZE, LOCAL_SIZE = 224, 96
CLIP, MOMENTUM, STUDENT_TEMPERATURE = 3.0, 0.996, 0.1
POSITION = Position(update=1, num_updates=1_000_000, updates_per_epoch=1)  # after the epoch of frozen prototypes


@guarded
def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    crops = random_crops(arguments.batch, arguments.local_crops, device)
    torch.manual_seed(0)
    model = xcit.create_model(arguments.model, patch_size=arguments.patch_size, num_classes=0)
    task = Dino(model, Target("none"), prototypes=arguments.prototypes).to(device).train()
    names = {"crop by crop": True, "one pass for each size": False}
    plain = {name: Plain(task, arguments, one_by_one=alone).to(device).train() for name, alone in names.items()}
    require_same_loss(task, plain["one pass for each size"], crops)
    steps: dict[str, Step] = {"ours": our_update(task, crops)}
    steps |= {name: module.update_on(crops) for name, module in plain.items()}
    found = in_turns(steps, arguments.rounds, device)
    print_table(arguments, found)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", choices=xcit.list_models(), default="xcit_s12", help="default: %(default)s")
    parser.add_argument("--patch-size", type=int, choices=[8, 16], default=16, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=4, help="images of an update (default: %(default)s)")
    parser.add_argument("--local-crops", type=int, default=8, help="of each image (default: %(default)s)")
    parser.add_argument("--prototypes", type=int, default=4096, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    return parser.parse_args()


def random_crops(images: int, local_crops: int, device: torch.device) -> Crops:
    def crops(number: int, size: int) -> Tensor:
        return torch.randn(number * images, 3, size, size, device=device).to(memory_format=torch.channels_last)

    return Crops(crops(GLOBAL_CROPS, GLOBAL_SIZE), crops(local_crops, LOCAL_SIZE) if local_crops else None)


def our_update(task: Dino, crops: Crops) -> Step:
    optimizer = make_optimizer(task, name="adamw", lr=1e-5, weight_decay=0.04, options={})

    def update() -> None:
        task(crops)["loss"].backward()
        clip_gradients(task.parameters(), CLIP, "each")
        task.before_step(POSITION, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        task.after_update(POSITION)

    return update


class Plain(nn.Module):
    """DINO by the paper's algorithm, with timm's XCiT.

    Args:
        task: whose initial weights it has.
        one_by_one: run the backbone for each crop by itself, otherwise once for all crops of a size.
    """

    def __init__(self, task: Dino, arguments: argparse.Namespace, *, one_by_one: bool) -> None:
        super().__init__()
        name = f"{long_name(arguments.model, arguments.patch_size)}_224"
        self.backbone = timm.create_model(name, num_classes=0)
        self.backbone.load_state_dict(task.model.state_dict())
        self.head: DinoHead = copy.deepcopy(task.head)
        self.teacher = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.head)]).requires_grad_(False)
        self.center = torch.zeros(1, arguments.prototypes, device=task.center.device)
        self.one_by_one, self.batch = one_by_one, arguments.batch

    def scores(self, backbone: nn.Module, head: nn.Module, groups: list[Tensor]) -> list[Tensor]:
        """The scores of each crop, (B, K)."""
        passes = [crop for group in groups for crop in group.split(self.batch)] if self.one_by_one else groups
        features = torch.cat([backbone(images) for images in passes])
        return list(head(features).split(self.batch))

    def forward(self, crops: Crops) -> Tensor:
        groups = [group for group in crops if group is not None]
        with torch.no_grad():
            outputs = self.scores(self.teacher[0], self.teacher[1], groups[:1])
        students = self.scores(self.backbone, self.head, groups)
        losses = []
        for t, output in enumerate(outputs):
            wanted = ((output - self.center) / FIRST_TEMPERATURE).softmax(dim=-1)
            for v, scores in enumerate(students):
                if v != t:
                    predicted = F.log_softmax(scores / STUDENT_TEMPERATURE, dim=-1)
                    losses.append(-(wanted * predicted).sum(dim=-1).mean())
        self.center = 0.9 * self.center + 0.1 * torch.cat(outputs).mean(dim=0, keepdim=True)
        return torch.stack(losses).mean()

    def update_on(self, crops: Crops) -> Step:
        student = [*self.backbone.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW([p for p in student if p.requires_grad], lr=1e-5, weight_decay=0.04)

        def update() -> None:
            self(crops).backward()
            for parameter in student:
                if parameter.grad is not None:
                    norm = parameter.grad.norm()
                    if norm > CLIP:
                        parameter.grad.mul_(CLIP / (norm + 1e-6))
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for ours, theirs in zip(student, self.teacher.parameters(), strict=True):
                    theirs.mul_(MOMENTUM).add_((1 - MOMENTUM) * ours)

        return update


def require_same_loss(task: Dino, plain: Plain, crops: Crops) -> None:
    """Compare both sides before they are timed. The copies keep their statistics and centers unchanged."""
    with torch.no_grad():
        ours, theirs = copy.deepcopy(task)(crops)["loss"].item(), copy.deepcopy(plain)(crops).item()
    if abs(ours - theirs) > 1e-3 * abs(theirs):
        raise TrainingError(f"the losses differ: {ours} of ours, {theirs} of the plain formulation")
    print(f"loss of the first update: {ours:.5f} of ours, {theirs:.5f} of the plain formulation")


def print_table(arguments: argparse.Namespace, found: dict[str, list[float]]) -> None:
    crops = f"{GLOBAL_CROPS} crops of {GLOBAL_SIZE} and {arguments.local_crops} of {LOCAL_SIZE} pixels"
    table = Table(title=f"{arguments.model}/{arguments.patch_size}, {arguments.batch} images an update, {crops}")
    for column in ("", "images/s", "ours / it", "range over the rounds"):
        table.add_column(column, justify="right")
    for side, rates in found.items():
        ratios = [ours / other for ours, other in zip(found["ours"], rates, strict=True)]
        images = arguments.batch * statistics.median(rates)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(side, f"{images:.2f}", f"{statistics.median(ratios):.2f}", spread if side != "ours" else "")
    show_table(table)


if __name__ == "__main__":
    main()
