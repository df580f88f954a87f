"""Whole images, windows, scales, flips and bands, against computations with the logits of all pixels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.models.dense import windows
from xcit.models.dense.pyramid import padded
from xcit.models.dense.windows import Segmented, at_scales, bands, slide, whole

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


class Network:
    """Logits that depend on the area around a pixel, so that windows differ from the whole image. Notes its inputs."""

    def __init__(self) -> None:
        self.kernel = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return F.conv2d(padded(images), self.kernel, stride=4, padding=4) / 8


def picture(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def pixels(network: Network, images: Tensor) -> Tensor:
    """The logits at the images' size."""
    return bilinear(network(images), padded(images).shape[-2:])[..., : images.shape[-2], : images.shape[-1]]


def together(views: list[Segmented], original: tuple[int, int]) -> Tensor:
    return torch.cat([probabilities for _, probabilities in bands(views, original)], dim=1)


@pytest.fixture(params=[2**24, 1500, 1], ids=["one band", "several bands", "bands of a row"])
def _bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "BAND_VALUES", request.param)


@pytest.mark.usefixtures("_bands")
@pytest.mark.parametrize("original", [(45, 70), (97, 131), (20, 31)])
def test_the_whole_image_is_enlarged_to_its_size_and_then_to_the_originals(original: tuple[int, int]) -> None:
    network, image = Network(), picture(45, 70)
    expected = bilinear(pixels(network, image), original)[0].softmax(dim=0)
    found = together([whole(network, image)], original)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert (found.argmax(dim=0) == expected.argmax(dim=0)).float().mean() > 0.999


def test_bands_begin_where_the_last_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "BAND_VALUES", 5 * 70 * 16)
    found = list(bands([whole(Network(), picture(45, 70))], (45, 70)))
    assert [(start, x.shape) for start, x in found] == [
        (0, (5, 16, 70)),
        (16, (5, 16, 70)),
        (32, (5, 13, 70)),
    ]


def test_one_window_that_covers_the_image_is_the_whole_image() -> None:
    network, image = Network(), picture(45, 70)
    views = [whole(network, image)], [slide(network, image, 80, 40)]
    first, second = (together(view, (60, 90)) for view in views)
    assert torch.equal(first, second)


@pytest.mark.usefixtures("_bands")
@pytest.mark.parametrize(("side", "stride"), [(32, 20), (32, 32), (25, 7), (60, 41)])
def test_overlapping_windows_are_averaged(side: int, stride: int) -> None:
    network, image = Network(), picture(45, 70)
    total, count = torch.zeros(5, 45, 70), torch.zeros(45, 70)
    corners = []
    for top in range(0, 45 + stride, stride):  # as mmsegmentation has it, but for windows that come twice
        for left in range(0, 70 + stride, stride):
            corner = (max(min(top + side, 45) - side, 0), max(min(left + side, 70) - side, 0))
            if corner not in corners:
                corners.append(corner)
    for top, left in corners:
        place = (slice(top, top + side), slice(left, left + side))
        total[:, *place] += pixels(network, image[..., *place])[0]
        count[place] += 1
    expected = bilinear((total / count)[None], (61, 83))[0].softmax(dim=0)
    network.seen.clear()
    torch.testing.assert_close(together([slide(network, image, side, stride)], (61, 83)), expected, **CLOSE)
    assert len(network.seen) == len(corners)


@pytest.mark.usefixtures("_bands")
def test_scales_and_flips_average_the_probabilities() -> None:
    network, image, original = Network(), picture(45, 70), (50, 77)

    def segment(image: Tensor, flipped: bool) -> Segmented:
        return slide(network, image, 48, 30, flipped)

    def once(image: Tensor) -> Tensor:
        return together([slide(network, image, 48, 30)], original)

    small = F.interpolate(image, size=(22, 35), mode="bilinear", antialias=True)
    large = F.interpolate(image, size=(68, 105), mode="bilinear", antialias=True)
    parts = [once(x) for x in (small, image, large)] + [once(x.flip(-1)).flip(-1) for x in (small, image, large)]
    views = at_scales(segment, image, [0.5, 1.0, 1.5], flip=True)
    torch.testing.assert_close(together(views, original), torch.stack(parts).mean(dim=0), **CLOSE)
    assert len(at_scales(segment, image, [1.0], flip=False)) == 1


def test_logits_in_half_precision_become_probabilities_in_fp32() -> None:
    network, image = Network(), picture(32, 64)
    found = together([whole(lambda images: network(images).bfloat16(), image)], (32, 64))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=0), torch.ones(32, 64))
