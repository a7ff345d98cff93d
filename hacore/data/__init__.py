"""Images as one tensor on the device, and the parts of them that a model may and may not see.

``load`` reads a dataset, ``Split`` says what is retained, forgotten and set aside, ``Batches`` and
``PairedBatches`` walk over it in a seeded order, ``Augment`` varies it.
"""

from hacore.data.batches import Augment, Batch, Batches, Pair, PairedBatches, PairedViews, SideBySide
from hacore.data.captioned import Captioned
from hacore.data.captions import with_captions
from hacore.data.dataset import Dataset, as_float, check_images
from hacore.data.reading import Captions, Reading, forgotten_nodes
from hacore.data.sources import DATASETS, Source, load
from hacore.data.split import Split
from hacore.data.tokenizer import Tokenizer
from hacore.data.tree import Tree

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Batches",
    "Captioned",
    "Captions",
    "Dataset",
    "Pair",
    "PairedBatches",
    "PairedViews",
    "Reading",
    "SideBySide",
    "Source",
    "Split",
    "Tokenizer",
    "Tree",
    "as_float",
    "check_images",
    "forgotten_nodes",
    "load",
    "with_captions",
]
