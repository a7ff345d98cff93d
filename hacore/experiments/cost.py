"""What the runs of some records would cost at the papers' size: exact commands, and an estimate from FLOPs."""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from hacore import results
from hacore.errors import HacoreError
from hacore.experiments.perform import training_flops
from hacore.experiments.settings import PROFILES, Run
from hacore.unlearning import METHODS

PAPER = "paper"
ENCODERS = ("resnet18", "resnet34", "resnet50")  # of the papers
GPU = 0.25 * 990e12  # FLOP/s, assumed and not measured: a quarter of an H200's dense bf16 peak
IMAGES = {"cifar10": 45_000, "cifar100": 45_000, "svhn": 65_931}  # of training, without validation


def paper_cost(
    records: pd.DataFrame,
    data: Iterable[str] = tuple(PROFILES[PAPER]),
    encoders: Iterable[str] = ENCODERS,
    gpu: float = GPU,
) -> pd.DataFrame:
    r"""An estimate of what the runs of some records would cost at profile ``paper``; nothing is measured.

    Every run counts as the share of a retraining that its record measured, Original and Retrain among them,

    .. math:: \text{FLOPs} = F \sum_{runs} \frac{\text{FLOPs of the run}}{\text{FLOPs of its Retrain}}

    with :math:`F` of :func:`training_flops`. Evaluation is left out. GPU-hours are these FLOPs at the rate
    ``gpu``, CPU-days at the FLOPs a second of the records' own retrainings.

    Args:
        records: a table from :func:`hacore.results.load` of one request, with Retrain's records among its rows.
        data, encoders: a row for each combination.
        gpu: FLOP/s of one GPU.

    Returns:
        ``trainings`` (the sum above), ``PFLOP each``, ``GPU-hours`` and ``CPU-days``.

    Raises:
        HacoreError: if the records are of several requests.
    """
    request = _request(records)
    trainings = results.gaps(records)["relative_flops"].sum() / 100
    gold = records[records["method"] == "retrain"]
    cpu = gold["flops"].sum() / gold["seconds"].sum()
    rows = {}
    for encoder in encoders:
        # The settings of this profile are the same for all data sets, which differ in the number of images.
        image = training_flops(
            replace(request, settings=replace(request.resolved(), encoder=encoder)), images=1
        )
        for name in data:
            each = image * IMAGES[name]
            rows[name, encoder] = {
                "trainings": trainings,
                "PFLOP each": each / 1e15,
                "GPU-hours": trainings * each / gpu / 3600,
                "CPU-days": trainings * each / cpu / 86400,
            }
    return pd.DataFrame(rows).T.sort_index()


def paper_commands(records: pd.DataFrame, data: Iterable[str] = tuple(PROFILES[PAPER])) -> list[str]:
    """The commands that make the runs of some records at profile ``paper``, with its ResNet-18.

    One for each data set and geometry, built from :attr:`Run.command`. Other encoders have no option of the
    command line; in Python: ``replace(run, settings=replace(run.resolved(), encoder="resnet34"))``.

    Raises:
        HacoreError: if the records are of several requests, or lack seeds below their largest.
    """
    request, commands = _request(records), []
    every = {name for name, method in METHODS.items() if method.fits(request.scenario, request.kind)}
    seeds = sorted({int(seed) for seed in records["seed"]})
    if seeds != list(range(len(seeds))):
        raise HacoreError(f"one command makes the seeds from 0 on, not {seeds}; give records of those")
    for name in data:
        for (space, lift), group in records.groupby(["space", "lift"], sort=False):
            methods = list(dict.fromkeys(group["method"]))
            chosen = "all" if set(methods) == every else ",".join(methods)
            one = replace(request, data=name, space=space, lift=lift).command
            one = one.replace(f"--method {request.method}", f"--method {chosen}")
            one = one.replace(f"--seed {request.seed}", f"--seeds {len(seeds)}")
            commands.append(f"{one} --results book/results")
    return commands


def _request(records: pd.DataFrame) -> Run:
    """The Euclidean Retrain of the records' request at profile ``paper``."""
    columns = ["scenario", "recipe", "forget"]
    if len(records[columns].drop_duplicates()) != 1:
        raise HacoreError(
            "these are records of several requests; give those of one scenario, recipe and forget"
        )
    scenario, recipe, forget = records[columns].iloc[0]
    if not isinstance(forget, str):
        forget = int(forget) if forget == int(forget) else float(forget)
    return Run(
        scenario=scenario, profile=PAPER, recipe=recipe, forget=forget, method="retrain", data="cifar10",
        lift=records["lift"].iloc[0],
    )  # fmt: skip
