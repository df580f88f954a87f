"""Any model of timm (DeiT, ResNet, RegNet, CaiT, Swin …), for comparison and as a teacher."""

from typing import Any

from torch import nn

from ..errors import InputError, unknown
from ..weights.sources import cannot_download


def timm_model(
    *,
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    pretrained: bool = False,
    drop_path_rate: float | None = None,
    image_size: int | list[int] | None = None,
) -> nn.Module:
    """timm.create_model, with the arguments that a model with a fixed input size needs for image_size.

    Args:
        name: Any model of timm, with or without the tag of its weights, such as resnet50.a1_in1k.
        pretrained: Whether to load these weights from the hub. Position embeddings are resampled to image_size.
        drop_path_rate: Rate of stochastic depth; null: the model's default, or a model without this option.
        image_size: Pixels, or [height, width], for models of one size; null: the size of their weights. Other models
            accept any size. ViT, DeiT and Swin are built so that they accept other sizes later, too.

    Raises:
        InputError: timm is not installed or has no such model, the model cannot be built with these arguments, or its
            weights cannot be downloaded.
    """
    try:
        import timm  # imported here, so that the other models work without timm
    except ImportError:
        raise InputError(f"model.name={name}: is timm's, which is not installed; pip install timm") from None
    name = name.removeprefix("timm/")
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise InputError(unknown(name, "model.name", timm.list_models()))
    arguments = {"num_classes": num_classes, "in_chans": in_chans, "drop_path_rate": drop_path_rate}
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        raise InputError(unknown(name, "model.name", timm.list_pretrained(f"{architecture}.*"))) from None
    sizes: list[dict[str, Any]] = [{}]
    if config is not None and config.fixed_input_size:
        # Not every such model has both arguments. One without either is built for the size of its weights.
        built_for = {} if image_size is None else {"img_size": image_size}
        sizes = [built_for | {"dynamic_img_size": True}, built_for, {}]
    for size in sizes:
        try:
            return timm.create_model(name, pretrained=pretrained, **arguments, **size)
        except TypeError as error:
            reason: Exception = error
        except (AssertionError, ValueError) as error:
            reason = error
            break
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise cannot_download(f"timm/{name}", error) from None
    message = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    raise InputError(f"model.name={name}: timm cannot build it with image_size={image_size} ({message})")
