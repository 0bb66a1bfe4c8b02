"""Data sets as uint8 tensors on a device, and their augmentation."""

from llfc_core.data.augmentation import Augmentation, AugmentationParameters
from llfc_core.data.dataset import DataCorrupt, DataError, DataMissing, Dataset, Split
from llfc_core.data.load import DATASETS, load_dataset

__all__ = [
    "DATASETS",
    "Augmentation",
    "AugmentationParameters",
    "DataCorrupt",
    "DataError",
    "DataMissing",
    "Dataset",
    "Split",
    "load_dataset",
]
