"""Features are what the classifier gets, in the order of the data set, for XCiT and for models of timm."""

import pytest
import torch
from torch import Tensor, nn

import xcit
from data.views.labelled_crop import LabelledImages
from xcit.errors import InputError
from xcit.evaluation.features import extract, features_of
from xcit.models.fast.inference import ready_for_inference

CPU = torch.device("cpu")


def batches(*sizes: int, resolution: int = 32) -> list[LabelledImages]:
    random = torch.Generator().manual_seed(0)
    images = [torch.randn(size, 3, resolution, resolution, generator=random) for size in sizes]
    return [LabelledImages(i, torch.zeros(len(i), 5), torch.arange(len(i)), torch.ones(len(i))) for i in images]


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "xcit":
        return xcit.create_model("xcit_n12", patch_size=8, num_classes=5, depth=2, layer_scale_init=1.0)
    if name == "xcit average":
        return xcit.create_model("xcit_n12", patch_size=8, num_classes=5, depth=2, pool="average")
    return xcit.create_model("timm", name=name, num_classes=5, image_size=None if "net" in name else 32)


def classified(model: nn.Module, vectors: Tensor) -> Tensor:
    return getattr(model, model.pretrained_cfg["classifier"].split(".")[0])(vectors)


@pytest.mark.parametrize("name", ["xcit", "xcit average", "resnet18", "vit_tiny_patch16_224"])
def test_features_are_what_the_classifier_gets_in_the_order_of_the_images(name: str) -> None:
    model, images = model_of(name).train(), batches(3, 2)
    found = extract(model, images, CPU)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch.images) for batch in images])
        torch.testing.assert_close(classified(model, found.vectors), logits, atol=2e-4, rtol=1e-4)
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert (found.vectors.dtype, found.vectors.device) == (torch.float32, CPU)
    assert extract(model, images, CPU, "bf16").vectors.dtype == torch.float32


@pytest.mark.parametrize("name", ["xcit", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_mean_of_the_patch_tokens_follows_the_class_token(name: str) -> None:
    model, (batch,) = model_of(name).eval(), batches(3)
    vectors = extract(model, [batch], CPU, kind="class_and_mean").vectors
    with torch.no_grad():
        tokens = model.forward_features(batch.images)
    patches = 16 if name == "xcit" else 4  # of 8 and of 16 pixels
    expected = torch.cat([tokens[:, 0], tokens[:, -patches:].mean(dim=1)], dim=1)
    torch.testing.assert_close(vectors, expected)
    if name == "xcit":
        folded = extract(ready_for_inference(model), [batch], CPU, kind="class_and_mean").vectors
        torch.testing.assert_close(folded, expected, atol=2e-4, rtol=1e-3)


def test_features_that_are_not_finite_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    images = batches(2, 1)
    images[1].images[0, 0, 0, 0] = torch.nan
    extract(model_of("xcit"), images, CPU)
    assert capsys.readouterr().err == "note: the features of 1 of 3 images are not finite at fp32\n"


@pytest.mark.parametrize("name", ["xcit average", "resnet18"])
def test_a_model_without_a_class_token_is_refused_where_one_is_needed(name: str) -> None:
    with pytest.raises(InputError, match=r"^features=class_and_mean: (XCiT|ResNet) has no class token"):
        features_of(model_of(name).eval(), batches(1)[0].images, "class_and_mean")
