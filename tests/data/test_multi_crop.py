"""The multi-crop view: one decode for all crops, DINO's augmentation, the same crops in any worker."""

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from data import crops as crops_module
from data.crops import Box, Crop, random_resized_crop, random_resized_crops
from data.examples import Example
from data.views import VIEWS
from data.views.multi_crop import Colors, MultiCrop
from xcit.encoded_image import EncodedImage
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

OPTIONS: dict[str, Any] = {
    "global_scale": [0.25, 1.0],
    "local_scale": [0.05, 0.25],
    "local_crops": 3,
    "local_size": 24,
    "ratio": [0.75, 4 / 3],
    "hflip": 0.5,
    "color_jitter": 0.8,
    "grayscale": 0.2,
    "blur": [1.0, 0.1, 0.5],
    "solarize": 0.2,
}
PLAIN = {"hflip": 0.0, "color_jitter": 0.0, "grayscale": 0.0, "blur": [0.0, 0.0, 0.0], "solarize": 0.0}


def view(**options: Any) -> MultiCrop:
    return VIEWS["multi_crop"].training(Preprocessing(size=(48, 48)), [], "cpu", **(OPTIONS | options))


def jpeg(quality: int = 95) -> EncodedImage:
    file = io.BytesIO()
    Image.fromarray(photographs.astronaut()).save(file, "JPEG", quality=quality)
    return EncodedImage(file.getvalue(), "astronaut.jpg")


def sample(made: MultiCrop, image: EncodedImage | Image.Image, seed: int = 0) -> list[torch.Tensor]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return made.sample(Example(image, None, "key"))


def test_an_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    whole = crops_module.read_jpeg

    def counting(image: EncodedImage) -> Any:
        found = whole(image)
        assert found is not None
        decode = type(found).decode_rows
        monkeypatch.setattr(
            type(found), "decode_rows", lambda self, *to: (decoded.append(to), decode(self, *to))[1], raising=True
        )
        return found

    monkeypatch.setattr(crops_module, "read_jpeg", counting)
    made = sample(view(**PLAIN), jpeg())
    assert len(decoded) == 1
    assert [tuple(crop.shape) for crop in made] == [(48, 48, 3)] * 2 + [(24, 24, 3)] * 3


@pytest.mark.parametrize("encoded", [True, False])
def test_each_crop_shows_its_part_of_the_image(encoded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each one were cut from the whole image and resized by itself; a JPEG in small may differ a little."""
    boxes = [Box(0, 0, 400, 300), Box(100, 50, 300, 400), Box(30, 200, 130, 120)]
    image = jpeg() if encoded else Image.fromarray(photographs.astronaut())
    pixels = np.array(image.rgb() if isinstance(image, EncodedImage) else image)
    drawn = iter(boxes)
    monkeypatch.setattr(crops_module, "random_box", lambda *_: next(drawn))
    made = random_resized_crops(
        image, [Crop((48, 48), (0, 1)), Crop((48, 48), (0, 1)), Crop((24, 24), (0, 1))], (1, 1), Preprocessing()
    )
    for box, crop, size in zip(boxes, made, (48, 48, 24), strict=True):
        cut = torch.from_numpy(pixels[box.top : box.top + box.height, box.left : box.left + box.width])
        expected = crops_module.resize(cut, size, Preprocessing())
        assert (crop.float() - expected.float()).abs().mean() < (1.5 if encoded else 1e-6)


def test_one_crop_of_several_is_the_crop_of_its_own_function() -> None:
    image = jpeg()
    random.seed(3)
    (several,) = random_resized_crops(image, [Crop((48, 48), (0.1, 1))], (0.75, 1.33), Preprocessing())
    random.seed(3)
    assert torch.equal(several, random_resized_crop(image, Preprocessing(size=(48, 48)), (0.1, 1), (0.75, 1.33)))


def test_the_smallest_crop_decides_the_reduction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop that would be enlarged keeps all of its pixels, though the others need fewer."""
    scales: list[int] = []
    decode = crops_module.read_jpeg(jpeg()).__class__.decode_rows  # type: ignore[union-attr]
    monkeypatch.setattr(
        "data.jpeg.Jpeg.decode_rows", lambda self, rows, scale: (scales.append(scale), decode(self, rows, scale))[1]
    )
    large, small = Box(0, 0, 512, 512), Box(10, 10, 90, 90)
    for boxes in ([large, large], [large, small]):
        drawn = iter(boxes)
        monkeypatch.setattr(crops_module, "random_box", lambda *_, drawn=drawn: next(drawn))
        random_resized_crops(jpeg(), [Crop((48, 48), (0, 1)), Crop((40, 40), (0, 1))], (1, 1), Preprocessing())
    assert scales == [4, 1]


def test_crops_follow_from_the_seed() -> None:
    made = view()
    first, again, other = sample(made, jpeg(), 1), sample(made, jpeg(), 1), sample(made, jpeg(), 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1]), "the crops of an image differ"


def test_the_batch_holds_the_first_crop_of_each_image_then_the_second() -> None:
    made = view(**PLAIN)
    samples = [sample(made, jpeg(), seed) for seed in (1, 2)]
    batch = made.to_device(made.collate(samples), torch.device("cpu"), [1, 2], [0])
    assert batch.global_crops.shape == (4, 3, 48, 48) and batch.local_crops.shape == (6, 3, 24, 24)
    preprocessing = Preprocessing(size=(48, 48))
    for row, (image, crop) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        expected = preprocessing.normalize(samples[image][crop][None])[0]
        torch.testing.assert_close(batch.global_crops[row], expected)
    torch.testing.assert_close(batch.local_crops[5], preprocessing.normalize(samples[1][4][None])[0])


def test_without_local_crops_there_are_two() -> None:
    made = view(local_crops=0)
    collated = made.collate([sample(made, jpeg())])
    assert made.to_device(collated, torch.device("cpu"), [0], [0]).local_crops is None


# The augmentation.


def colors(**chances: float) -> Colors:
    return Colors(**({"hflip": 0.0, "color_jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "solarize": 0.0} | chances))


PIXELS = torch.from_numpy(photographs.astronaut()[100:148, 100:148].copy())


def test_each_operation_does_what_its_name_says() -> None:
    torch.manual_seed(0)
    assert torch.equal(colors()(PIXELS), PIXELS)
    assert torch.equal(colors(hflip=1.0)(PIXELS), PIXELS.flip(1))
    gray = colors(grayscale=1.0)(PIXELS)
    assert torch.equal(gray[..., 0], gray[..., 1]) and torch.equal(gray[..., 1], gray[..., 2])
    assert torch.equal(colors(solarize=1.0)(PIXELS), torch.where(PIXELS >= 128, 255 - PIXELS, PIXELS))
    random.seed(0)
    blurred = colors(blur=1.0)(PIXELS).float()
    assert blurred.diff(dim=1).abs().mean() < 0.8 * PIXELS.float().diff(dim=1).abs().mean()
    jittered = colors(color_jitter=1.0)(PIXELS)
    assert not torch.equal(jittered, PIXELS)


def test_blur_and_solarisation_are_chosen_crop_by_crop() -> None:
    """As in DINO: the first global crop is always blurred, and only the second one is solarized."""
    made = view()
    assert [(of.blur, of.solarize) for of in made.colors] == [(1.0, 0.0), (0.1, 0.2)] + [(0.5, 0.0)] * 3


def test_the_gpu_decoder_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.decode=gpu: not for this task"):
        VIEWS["multi_crop"].training(Preprocessing(size=(48, 48)), [], "gpu", **OPTIONS)


def test_images_without_classes_are_evaluated_without_labels() -> None:
    evaluation = VIEWS["multi_crop"].evaluation(Preprocessing(size=(48, 48)), [])
    collated = evaluation.collate([evaluation.sample(Example(jpeg(), None, "key"))])
    batch = evaluation.to_device(collated, torch.device("cpu"), [0], [0])
    assert batch.images.shape == (1, 3, 48, 48) and batch.labels is None
