"""Real image-text sets: tars in the layout of webdataset, or folders of the same files, streamed.

``image_text`` gathers what fits in memory as a :class:`~hacore.data.captioned.Captioned` data set, ``ShardBatches``
streams what does not; both count what cannot be used in a ``Report``. ``mentions`` and ``select`` find a concept
by its words.
"""

from hacore.data.shards.concepts import Concepts, mentions, select
from hacore.data.shards.gather import image_text
from hacore.data.shards.pictures import decode, decoded
from hacore.data.shards.read import Report, Sample, Shards, Unusable, find
from hacore.data.shards.stream import ShardBatches

__all__ = [
    "Concepts",
    "Report",
    "Sample",
    "ShardBatches",
    "Shards",
    "Unusable",
    "decode",
    "decoded",
    "find",
    "image_text",
    "mentions",
    "select",
]
