"""Segmentation of whole images: sliding windows, several scales and flips, put together in bands of rows.

The logits of a large image at its own size would not fit into memory: 150 classes × 24 megapixels in fp32 are 14 GB.
So only the head's output is kept, at stride 4, which is 16 times smaller. It is enlarged for a few rows at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv_block import resized

Network = Callable[[Tensor], Tensor]
"""Images, (1, C, h, w), → logits at stride 4 of the images padded on the right and at the bottom, (1, K, …, …)."""
STRIDE = 4
BAND_VALUES = 2**24
"""Probabilities in a band at most: 64 MB in fp32."""


class Window(NamedTuple):
    """A part of an image, in pixels, and its logits at stride 4, (1, K, …, …)."""

    top: int
    left: int
    height: int
    width: int
    logits: Tensor


@dataclass(frozen=True)
class Segmented:
    """An image as the network saw it, once: the logits of its windows, which cover it."""

    size: tuple[int, int]
    windows: Sequence[Window]
    flipped: bool = False

    def rows(self, start: int, stop: int) -> Tensor:
        """The logits of some rows of pixels, (K, stop - start, w); where windows overlap, their mean."""
        total = count = None
        for window in self.windows:
            first, last = max(start, window.top), min(stop, window.top + window.height)
            if first >= last:
                continue
            x = window.logits[0]
            _, height, width = x.shape
            near = neighbours(height, STRIDE * height, first - window.top, last - window.top, x.device)
            logits = enlarged(x, *near, STRIDE * width)[..., : window.width]
            if (window.height, window.width) == self.size:
                return logits
            if total is None or count is None:
                total = logits.new_zeros(len(logits), stop - start, self.size[1])
                count = torch.zeros_like(total[0])
            place = (slice(first - start, last - start), slice(window.left, window.left + window.width))
            total[:, *place] += logits
            count[place] += 1
        assert total is not None and count is not None
        return total.div_(count)

    def probabilities(self, original: tuple[int, int], start: int, stop: int) -> Tensor:
        """Some rows of the original image, whose size is (H, W): (K, stop - start, W)."""
        if self.size == tuple(original):
            found = self.rows(start, stop).softmax(dim=0)
        else:
            device = self.windows[0].logits.device
            above, below, share = neighbours(self.size[0], original[0], start, stop, device)
            first = int(above[0])
            rows = self.rows(first, int(below[-1]) + 1)
            found = enlarged(rows, above - first, below - first, share, original[1]).softmax(dim=0)
        return found.flip(-1) if self.flipped else found


def whole(network: Network, image: Tensor, flipped: bool = False) -> Segmented:
    """The image in one piece."""
    return slide(network, image, max(image.shape[-2:]), 1, flipped)


def slide(network: Network, image: Tensor, side: int, stride: int, flipped: bool = False) -> Segmented:
    """The image in square windows, of `side` pixels, one every `stride` pixels.

    The last windows of a row or column are moved inside. Their overlapping logits are averaged, as in mmsegmentation.
    """
    height, width = image.shape[-2:]
    image = image.flip(-1) if flipped else image
    windows = []
    for top in starts(height, side, stride):
        for left in starts(width, side, stride):
            part = image[..., top : top + side, left : left + side]
            windows.append(Window(top, left, part.shape[-2], part.shape[-1], network(part)))
    return Segmented((height, width), windows, flipped)


def starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows start along a side of the image."""
    last = max(length - side, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def at_scales(
    segment: Callable[[Tensor, bool], Segmented], image: Tensor, scales: Sequence[float], flip: bool
) -> list[Segmented]:
    """The image, (1, C, h, w), at several scales, optionally also mirrored."""
    height, width = image.shape[-2:]
    found = []
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        is_same = size == (height, width)
        scaled = image if is_same else F.interpolate(image, size=size, mode="bilinear", antialias=True)
        found += [segment(scaled, flipped) for flipped in ((False, True) if flip else (False,))]
    return found


def bands(views: Sequence[Segmented], original: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """The probabilities at the original size, (H, W), averaged over the views, in bands from top to bottom.

    Yields the first row of each band and its probabilities, (K, rows, W) in fp32.
    """
    height, width = original
    num_classes = views[0].windows[0].logits.shape[1]
    widest = max(width, *(view.size[1] for view in views))
    rows = max(1, BAND_VALUES // (num_classes * widest))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        found = views[0].probabilities(original, start, stop)
        for view in views[1:]:
            found += view.probabilities(original, start, stop)
        yield start, found.div_(len(views))


def neighbours(count: int, length: int, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows `start` to `stop` of `length` lie among `count` rows: the two next to each, and the second's share.

    As in torch's bilinear interpolation with align_corners=False.
    """
    position = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * count / length - 0.5).clamp(min=0)
    above = position.long()
    share = (position - above).float()
    return above.to(device), (above + 1).clamp(max=count - 1).to(device), share.to(device)


def enlarged(x: Tensor, above: Tensor, below: Tensor, share: Tensor, width: int) -> Tensor:
    """Interpolate between rows of x, (K, h, w), and then along them: (K, len(share), width) in fp32."""
    rows = torch.lerp(x[:, above].float(), x[:, below].float(), share[:, None])
    return resized(rows[None], (len(share), width))[0]
