"""The input pipeline: from files to batches on the device. A new data set is a file in this room and a line here."""

from .datasets.digits import Digits
from .datasets.folder import Folder
from .datasets.imagenet import ImageNet
from .datasets.imagenet_shards import ImageNetShards
from .datasets.inaturalist import INat
from .datasets.transfer import CIFAR10, CIFAR100, Cars, Flowers
from .errors import BrokenImageError, DataError, WorkerKilledError
from .gpu_decoding import GpuTrainTransform, require_gpu_decoding
from .images import DataSource, Images
from .loader import Batch, EvalLoader, TrainLoader
from .mixing import Mixing
from .samplers import EvalBatches, TrainBatches
from .transforms import EvalTransform, TrainTransform

# name → class; its keyword arguments are the options that conf/data/NAME.yaml may set.
DATASETS: dict[str, type[DataSource]] = {
    "digits": Digits,
    "imagenet": ImageNet,
    "imagenet_shards": ImageNetShards,
    "folder": Folder,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "flowers": Flowers,
    "cars": Cars,
    "inat": INat,
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATASETS",
    "Batch",
    "BrokenImageError",
    "Cars",
    "DataError",
    "DataSource",
    "Digits",
    "EvalBatches",
    "EvalLoader",
    "EvalTransform",
    "Flowers",
    "Folder",
    "GpuTrainTransform",
    "INat",
    "ImageNet",
    "ImageNetShards",
    "Images",
    "Mixing",
    "TrainBatches",
    "TrainLoader",
    "TrainTransform",
    "WorkerKilledError",
    "require_gpu_decoding",
]
