"""Data sets as uint8 tensors on a device, and their augmentation."""

from llfc_core.data.augmentation import Augmentation, AugmentationParameters
from llfc_core.data.dataset import DataCorrupt, DataError, DataMissing, Dataset, Size, Split
from llfc_core.data.load import DATASETS, SIZES, load_dataset

__all__ = [
    "DATASETS",
    "SIZES",
    "Augmentation",
    "AugmentationParameters",
    "DataCorrupt",
    "DataError",
    "DataMissing",
    "Dataset",
    "Size",
    "Split",
    "load_dataset",
]
