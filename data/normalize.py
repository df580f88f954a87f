"""uint8 → normalised fp32, a batch at a time; on a CPU beside the workers, which want its cores."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

HELD_BY_A_LIST = [object()]
UNHELD = sys.getrefcount(HELD_BY_A_LIST[0])
"""What is counted for an object that a list holds and nobody else."""


class Normaliser:
    """(B, H, W, 3), uint8 → (B, 3, H, W), fp32 with the channels last in memory: (x / 255 - mean) / std.

    On a CPU it takes one thread, as others would wait in a spin for cores that decode, and goes image by image, which
    stay in the cache. What it returned before is written over once nobody holds it: fresh memory costs as much as all
    the rest, since the system clears each page of it.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = 255 * torch.tensor(mean), 255 * torch.tensor(std)
        self.lent: list[np.ndarray] = []

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":
            mean, std = self.mean.to(images.device), self.std.to(images.device)
            return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)
        B, H, W, C = images.shape
        out = self.memory((B, H, W * C))
        mean, std = self.mean.repeat(W), self.std.repeat(W)
        with one_thread():
            for normalised, image in zip(out, images.reshape(B, H, W * C), strict=True):
                normalised.copy_(image).sub_(mean).div_(std)
        return out.view(B, H, W, C).permute(0, 3, 1, 2)

    def memory(self, shape: tuple[int, ...]) -> Tensor:
        """As much as that, which no tensor has: a tensor holds the array that it was made from."""
        self.lent = [array for array in self.lent if array.shape == shape]
        for number in range(len(self.lent)):
            if sys.getrefcount(self.lent[number]) == UNHELD:
                return torch.from_numpy(self.lent[number])
        self.lent.append(np.empty(shape, dtype=np.float32))
        return torch.from_numpy(self.lent[-1])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"lent": []}  # a worker that is started anew has no use for it


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
