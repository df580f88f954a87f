"""The table of data sets. A new data set is a file here and a line below."""

from ..examples import DataSource
from .ade20k import ADE20k
from .coco import COCO
from .copydays import Copydays
from .digits import Digits
from .folder import Folder
from .imagenet import ImageNet
from .imagenet_shards import ImageNetShards
from .images import Images
from .inaturalist import INat
from .masks import Masks
from .table import LabelTable
from .transfer import CIFAR10, CIFAR100, Cars, Flowers

# Name → class. The class's keyword arguments are the options that conf/data/NAME.yaml may set.
DATASETS: dict[str, type[DataSource]] = {
    "digits": Digits,
    "imagenet": ImageNet,
    "imagenet_shards": ImageNetShards,
    "folder": Folder,
    "table": LabelTable,
    "images": Images,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "flowers": Flowers,
    "cars": Cars,
    "inat": INat,
    "copydays": Copydays,
    "coco": COCO,
    "ade20k": ADE20k,
    "masks": Masks,
}
