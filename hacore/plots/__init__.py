"""Figures from arrays and tables, drawn with matplotlib; nothing here imports torch."""

from hacore.plots.alignment import drops, gallery, matrices, spaced
from hacore.plots.audits import attacks, confusion_flow, radii, radius_histograms
from hacore.plots.exploration import explorer
from hacore.plots.forgetting import Panel, embeddings, plane, traces
from hacore.plots.gradients import Field, fields
from hacore.plots.style import png, slider, use_style

__all__ = [
    "Field", "Panel", "attacks", "confusion_flow", "drops", "embeddings", "explorer", "fields", "gallery", "matrices",
    "plane", "png", "radii", "radius_histograms", "slider", "spaced", "traces", "use_style",
]  # fmt: skip
