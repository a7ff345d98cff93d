"""Images as one tensor on the device, and the parts of them that a model may and may not see.

``load`` reads a dataset, ``Split`` says what is retained, forgotten and set aside, ``Batches`` and
``PairedBatches`` walk over it in a seeded order, ``Augment`` varies it.
"""

from hacore.data.batches import Augment, Batch, Batches, Pair, PairedBatches, PairedViews, SideBySide
from hacore.data.dataset import Dataset, as_float, check_images
from hacore.data.sources import DATASETS, Source, load
from hacore.data.split import Split

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Batches",
    "Dataset",
    "Pair",
    "PairedBatches",
    "PairedViews",
    "SideBySide",
    "Source",
    "Split",
    "as_float",
    "check_images",
    "load",
]
