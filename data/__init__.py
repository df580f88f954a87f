"""The input pipeline: it reads examples from files and yields batches on the device."""

from .datasets import DATASETS
from .datasets.digits import Digits
from .datasets.folder import Folder
from .datasets.imagenet import ImageNet
from .datasets.imagenet_shards import ImageNetShards
from .datasets.inaturalist import INat
from .datasets.transfer import CIFAR10, CIFAR100, Cars, Flowers
from .errors import BrokenImageError, DataError, WorkerKilledError
from .examples import DataSource, Example, Examples
from .gpu_decoding import GpuTrainTransform, require_gpu_decoding
from .loader import EvalLoader, TrainLoader
from .mixing import Mixing
from .samplers import EvalBatches, TrainBatches
from .transforms import TrainTransform
from .views import VIEWS
from .views.labelled_crop import CenterLabelledCrop, LabelledImages, RandomLabelledCrop

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DATASETS",
    "VIEWS",
    "BrokenImageError",
    "Cars",
    "CenterLabelledCrop",
    "DataError",
    "DataSource",
    "Digits",
    "EvalBatches",
    "EvalLoader",
    "Example",
    "Examples",
    "Flowers",
    "Folder",
    "GpuTrainTransform",
    "INat",
    "ImageNet",
    "ImageNetShards",
    "LabelledImages",
    "Mixing",
    "RandomLabelledCrop",
    "TrainBatches",
    "TrainLoader",
    "TrainTransform",
    "WorkerKilledError",
    "require_gpu_decoding",
]
