"""Regions of Mask R-CNN: anchors, matching, sampling and RoIAlign."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors."""
FIRST_LEVEL_SIDE = 56
"""Boxes with sides below twice this many pixels are pooled from the map of stride 4; each doubling is one level."""


class Anchors(nn.Module):
    """Anchors of three shapes at each position of each map. torchvision's are rounded to pixels; the authors' are not.

    Args:
        strides: of the maps, in pixels.
        scale: side of an anchor = scale · stride, in pixels.
    """

    def __init__(self, strides: Sequence[int], scale: float) -> None:
        super().__init__()
        self.strides, self.scale = strides, scale

    def forward(self, images: ImageList, maps: Sequence[Tensor]) -> list[Tensor]:
        """For each image the anchors of all maps, (A, 4): left, top, right, bottom, in pixels."""
        anchors = torch.cat([self.of_map(x, stride) for x, stride in zip(maps, self.strides, strict=True)])
        return [anchors] * len(images.image_sizes)

    def of_map(self, x: Tensor, stride: int) -> Tensor:
        root = torch.tensor(RATIOS, device=x.device).sqrt()
        sides = self.scale * stride * torch.stack([1 / root, root], dim=1) / 2
        shapes = torch.cat([-sides, sides], dim=1)
        rows, columns = (stride * torch.arange(side, device=x.device) for side in x.shape[-2:])
        y, x = (grid.flatten() for grid in torch.meshgrid(rows, columns, indexing="ij"))
        return (torch.stack([x, y, x, y], dim=1)[:, None] + shapes).flatten(0, 1)


def on_image(anchors: Tensor, size: tuple[int, int], multiple: int) -> Tensor:
    """Which anchors are centered on an image, (height, width), padded to a multiple of pixels: (A, 4) → (A,).

    The others lie in what a batch adds to the image, and so they depend on the other images.
    """
    height, width = (-(-side // multiple) * multiple for side in size)
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    return (x < width - 1) & (y < height - 1)  # centers are multiples of 4, except for rounding


class AnchorMatcher(Matcher):
    """As in torchvision, an object also gets the anchors that overlap it most.

    Here they must reach the lower threshold, as the authors have it: an object that no anchor fits is not learnt from.
    """

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        best = match_quality_matrix.amax(dim=1, keepdim=True)
        chosen = ((match_quality_matrix == best) & (best >= self.low_threshold)).any(dim=0)
        matches[chosen] = all_matches[chosen]


class SeededSampler:
    """Chooses at most `number` regions of an image, at most a share of them with an object. The image's seed decides.

    So the choice depends neither on the other images of the batch nor on the number of processes.

    use: 0 or 1. Two samplers with the same seeds draw different numbers.
    """

    def __init__(self, number: int, positive_share: float, use: int) -> None:
        self.number, self.positive_share, self.use = number, positive_share, use
        self.seeds: Sequence[int] = ()
        """Of the images in the batch, to be set before each call."""

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the chosen regions with an object, and of those without, for each image.

        labels: of the regions of each image: above 0 with an object, 0 without, below 0 neither.
        """
        positive, negative = [], []
        for of_image, seed in zip(labels, self.seeds, strict=True):
            random = torch.Generator().manual_seed((2 * seed + self.use) % 2**63)
            chosen = choose(of_image > 0, int(self.number * self.positive_share), random)
            positive.append(chosen)
            negative.append(choose(of_image == 0, self.number - int(chosen.sum()), random))
        return positive, negative


def choose(candidates: Tensor, number: int, random: torch.Generator) -> Tensor:
    """A mask of `number` of the candidates, or of all if there are fewer. candidates: a mask."""
    found = candidates.nonzero().flatten()
    chosen = torch.zeros_like(candidates)
    chosen[found[torch.randperm(len(found), generator=random)[:number].to(found.device)]] = True
    return chosen


class AlignedPool(nn.Module):
    """RoIAlign of boxes from the map that suits their size, with aligned pixel centers.

    torchvision's MultiScaleRoIAlign is half a pixel off, which the authors' detectors are not.
    """

    def __init__(self, size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.size, self.strides = size, strides

    def forward(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, C, size, size) for R boxes in all images. sizes is not used; it is what torchvision's RoIHeads gives."""
        of_image = [box.new_full((len(box), 1), number) for number, box in enumerate(boxes)]
        rois = torch.cat([torch.cat(of_image), torch.cat(list(boxes))], dim=1)
        levels = levels_of(rois[:, 1:], len(self.strides))
        first = next(iter(maps.values()))
        pooled = first.new_zeros(len(rois), first.shape[1], self.size, self.size)
        for level, (x, stride) in enumerate(zip(maps.values(), self.strides, strict=False)):
            own = (levels == level).nonzero().flatten()
            pooled[own] = roi_align(x, rois[own], self.size, 1 / stride, sampling_ratio=0, aligned=True)
        return pooled


def levels_of(boxes: Tensor, num_levels: int) -> Tensor:
    """The number of the map for each box, (R, 4) → (R,) (Lin et al., FPN, arXiv 1612.03144, equation 1)."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
    return torch.log2(side / FIRST_LEVEL_SIDE + 1e-6).floor().clamp(0, num_levels - 1).long()


def cut_masks(masks: Tensor, objects: Tensor, regions: Tensor, size: int) -> Tensor:
    """What the mask head should find in regions, (R, 4) → (R, size, size), 0 or 1.

    torchvision's targets are half a pixel off and not rounded, which the authors' are not.

    Args:
        masks: of all objects in the image, (N, h, w).
        objects: number of the object of each region, (R,).
    """
    needed, number = objects.unique(return_inverse=True)
    rois = torch.cat([number[:, None].to(regions), regions], dim=1)
    found = roi_align(masks[needed][:, None].to(regions), rois, size, sampling_ratio=0, aligned=True)[:, 0]
    return (found >= 0.5).to(regions)
