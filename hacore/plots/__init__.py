"""Figures from arrays and tables, drawn with matplotlib; nothing here imports torch."""

from hacore.plots.alignment import drops, gallery, matrices, spaced
from hacore.plots.audits import attacks, confusion_flow, radii, radius_histograms
from hacore.plots.changes import embedding_film, levels, to_disk, traversals
from hacore.plots.concepts import ablation, destinations, many, strengths
from hacore.plots.cones import cone_explorer, cone_figure, force_field, tree_cones
from hacore.plots.disk import cone
from hacore.plots.exploration import explorer
from hacore.plots.forgetting import Panel, embeddings, plane, traces
from hacore.plots.gradients import Field, fields
from hacore.plots.style import png, slider, use_style

__all__ = [
    "Field", "Panel", "ablation", "attacks", "cone", "cone_explorer", "cone_figure", "confusion_flow", "destinations",
    "drops", "embedding_film", "embeddings", "explorer", "fields", "force_field", "gallery", "levels", "many",
    "matrices", "plane", "png", "radii", "radius_histograms", "slider", "spaced", "strengths", "to_disk", "traces",
    "traversals", "tree_cones", "use_style",
]  # fmt: skip
