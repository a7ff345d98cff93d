"""The owner's audit as a command: evidence from files, and a report as a notebook and a page.

``evidence`` reads embeddings, or makes them from checkpoints and images; ``report`` writes what
:func:`hacore.evaluate.auditing.audit` finds in them.
"""

from hacore.audit.evidence import Evidence, Side, gather, image_files
from hacore.audit.report import (
    PAGE,
    drops_figure,
    gallery_figure,
    image_drops,
    load_report,
    matrices_figure,
    result,
    write_report,
)

__all__ = [
    "PAGE",
    "Evidence",
    "Side",
    "drops_figure",
    "gallery_figure",
    "gather",
    "image_drops",
    "image_files",
    "load_report",
    "matrices_figure",
    "result",
    "write_report",
]
