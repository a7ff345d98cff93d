"""Unlearning a checkpoint of your own: a MERU, CLIP, HyCoCLIP or OpenCLIP file and image-text pairs, and a report."""

from hacore.experiments.own.measures import measures
from hacore.experiments.own.report import PAGE, Report
from hacore.experiments.own.unlearn import answering, read_tokenizer, unlearn_checkpoint

__all__ = ["PAGE", "Report", "answering", "measures", "read_tokenizer", "unlearn_checkpoint"]
