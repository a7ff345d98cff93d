"""Experiments: a :class:`Run` says what is done, :func:`run` does it and returns its record.

The only place that puts data, model, method and evaluation together.
"""

import datetime
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from hacore import data, results, train
from hacore.encoders import encoder
from hacore.errors import HacoreError
from hacore.evaluate import evaluate
from hacore.geometry import SPACES, space
from hacore.models import MODES, Classifier, Lift
from hacore.train import TrainConfig
from hacore.unlearning import METHODS, Descent, Method, Outcome, Request, Training, method, train_on

SCENARIOS = ("single-class", "random-samples")
RECIPES = ("generalising", "memorising")
WHITENING = 5000  # images whose patches fit a whitening layer
TUNED = Path(__file__).parent / "tuned"
# The layers that training goes through; what lies above them does not change an original model.
TRAINING_CODE = ("files.py", "geometry", "data", "encoders.py", "models.py", "train")


@dataclass(frozen=True)
class Settings:
    """Everything about a run that the profile decides unless the user does."""

    encoder: str
    dim: int  # features, and coordinates of the space
    head: str  # "logistic" or "prototype"
    scale: float  # from features to tangent vectors
    radius: float  # of the clip or the sphere; unused when free
    training: Training
    unlearning: Method  # with its settings
    train_images: int | None = None  # class-balanced subset; None takes all
    test_images: int | None = None
    label_noise: float = 0.0  # share of training labels replaced by another class


@dataclass(frozen=True)
class Run:
    """One run: a method answers one request to forget, with one seed, in one geometry.

    Runs that differ only in ``method`` share split, initial weights and original model, so
    their results can be compared in pairs.
    """

    scenario: str = "single-class"
    data: str = "digits"
    profile: str = "quick"
    recipe: str = "generalising"  # or "memorising": no augmentation, or training until noise is learned
    method: str = "contrastive-unlearning"
    space: str = "euclidean"
    lift: str = "clipped"  # how features become points, see hacore.models.Lift
    seed: int = 0
    forget: int | float = 5  # the class in single-class; in random-samples a count, or a share below 1
    curv: float = 1.0  # c > 0, the curvature is -c; no effect in Euclidean space
    settings: Settings | None = None  # None takes the profile's, with the tuned values of its search

    def __post_init__(self) -> None:
        method(self.method)
        for kind, name, names in (
            ("scenario", self.scenario, SCENARIOS),
            ("data set", self.data, data.DATASETS),
            ("recipe", self.recipe, RECIPES),
            ("geometry", self.space, SPACES),
            ("lift", self.lift, MODES),
        ):
            if name not in names:
                raise HacoreError(f"there is no {kind} {name!r}; choose one of {', '.join(names)}")
        if self.seed < 0:
            raise HacoreError(f"a seed is a number from 0 on, not {self.seed}")
        if self.scenario == "single-class" and self.forget != int(self.forget):
            raise HacoreError(f"the class to forget is a whole number, not {self.forget}")
        self.resolved()

    def resolved(self) -> Settings:
        """The settings this run goes by: its own or else the profile's, with the run's seed in the loop."""
        chosen = self.settings or profile(self)
        if chosen.unlearning.name != self.method:
            chosen = replace(chosen, unlearning=tuned(self))
        return replace(
            chosen, training=replace(chosen.training, loop=replace(chosen.training.loop, seed=self.seed))
        )

    @property
    def name(self) -> str:
        """A file name that no other run has: what it does, and a digest of every setting."""
        digest = _digest(asdict(replace(self, settings=self.resolved())))
        return (
            f"{self.scenario}-{self.data}-{self.profile}-{self.recipe}-{self.space}-{self.lift}-{self.method}"
            f"-forget{self.forget}-seed{self.seed}-{digest}"
        )

    @property
    def command(self) -> str:
        """The command that makes this run's record again, when its settings are the profile's."""
        return (
            f"hacore run {self.scenario} --data {self.data} --profile {self.profile} --recipe {self.recipe} "
            f"--method {self.method} --space {self.space} --lift {self.lift} --curv {self.curv} "
            f"--forget {self.forget} --seed {self.seed}"
        )


def profile(run: Run) -> Settings:
    """The settings of a run's profile for its data set, recipe and method.

    Raises:
        HacoreError: if the profile is unknown or has no settings for the data set.
    """
    if run.profile not in PROFILES:
        raise HacoreError(f"there is no profile {run.profile!r}; choose one of {', '.join(PROFILES)}")
    if run.data not in PROFILES[run.profile]:
        raise HacoreError(
            f"profile {run.profile!r} has no settings for {run.data!r}, only for "
            f"{', '.join(PROFILES[run.profile])}; choose another profile or pass Run(settings=...)"
        )
    return replace(PROFILES[run.profile][run.data](run.recipe), unlearning=tuned(run))


def tuned(run: Run) -> Method:
    """The method of a run with the values that its search chose on validation images.

    Values searched for one scenario, data set, profile and recipe stand in one file of ``hacore/tuned``,
    written by :mod:`hacore.search`. Where nothing was searched, the defaults of the method stand.
    """
    chosen = method(run.method)
    if isinstance(chosen, Descent):
        chosen = replace(chosen, **UNLEARNING.get(run.profile, {}).get(run.method, {}))
        chosen = replace(chosen, batch_size=BATCHES.get(run.profile, chosen.batch_size))
    found = _tuned_values(TUNED / f"{run.scenario}-{run.data}-{run.profile}-{run.recipe}.json")
    return replace(chosen, **found.get(f"{run.space} {run.lift} {run.method}", {}))


@functools.cache
def _tuned_values(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _digits(recipe: str) -> Settings:
    # With a share of wrong labels and enough epochs to learn them, membership leaks; on clean digits it
    # does not, and a membership attack has nothing to find.
    memorise = recipe == "memorising"
    loop = TrainConfig(epochs=40 if memorise else 12, lr=0.1, schedule="one-cycle")
    return Settings(
        encoder="cnn",
        dim=32,
        head="logistic",
        scale=0.3,
        radius=4.0,
        training=Training(loop, batch_size=64),
        unlearning=METHODS["original"],
        label_noise=0.3 if memorise else 0.0,
    )


def _cifar(recipe: str) -> Settings:
    """A small residual net on 20,000 images: about a CPU minute in bf16, two in float32."""
    return Settings(
        encoder="resnet9",
        dim=64,
        head="logistic",
        scale=0.3,
        radius=4.0,
        training=Training(
            TrainConfig(
                epochs=8, lr=0.1, optimizer="muon", schedule="linear", weight_decay=5e-4,
                precision=train.fast_precision(),
            ),
            batch_size=250,
            augment="none" if recipe == "memorising" else "crop-flip",
        ),
        unlearning=METHODS["original"],
        train_images=20_000,
    )  # fmt: skip


def _paper(recipe: str) -> Settings:
    """ResNet-18 with the training settings of Lee et al. (2024), who do not augment; the lift is ours."""
    return Settings(
        encoder="resnet18",
        dim=512,
        head="logistic",
        scale=0.1,
        radius=4.0,
        training=Training(
            TrainConfig(epochs=100, lr=0.1, nesterov=False, weight_decay=5e-4, precision="bf16"),
            batch_size=256,
            augment="none" if recipe == "memorising" else "crop-flip",
        ),
        unlearning=METHODS["original"],
    )


PROFILES: dict[str, dict[str, Callable[[str], Settings]]] = {
    "quick": {"digits": _digits},
    "standard": dict.fromkeys(("cifar10", "cifar100", "svhn"), _cifar),
    "paper": dict.fromkeys(("cifar10", "cifar100", "svhn"), _paper),
}
# Images per unlearning step, where the profile's data are fewer than the papers'.
BATCHES = {"quick": 32}
# What else a profile sets for a method, before the tuned values.
UNLEARNING: dict[str, dict[str, dict[str, Any]]] = {"quick": {"contrastive-unlearning": {"epochs": 20}}}


@functools.lru_cache(maxsize=2)
def _dataset(
    name: str, train_images: int | None, test_images: int | None, device: torch.device
) -> data.Dataset:
    whole = data.load(name, device=device)
    if train_images is None and test_images is None:
        return whole
    # The subset is part of the data set, not of a run: the same images for every seed.
    return whole.subset(train=train_images, test=test_images, seed=0)


def _split(run: Run, dataset: data.Dataset) -> data.Split:
    noise = run.resolved().label_noise
    if run.scenario == "single-class":
        return data.Split.single_class(dataset, int(run.forget), seed=run.seed, label_noise=noise)
    share = 0 < run.forget < 1
    fraction, count = (float(run.forget), None) if share else (None, int(run.forget))
    return data.Split.samples(dataset, fraction, count, seed=run.seed, label_noise=noise)


def build(run: Run, dataset: data.Dataset, index: Int64[Tensor, "k"]) -> Classifier:
    """An untrained classifier for a run: the same weights for the same seed and geometry.

    A frozen first layer, where the encoder has one, is fitted to the training images in ``index``:
    give those the model is trained on, or Retrain would know the images it must never see.
    """
    settings = run.resolved()
    train.seed_everything(run.seed)
    manifold = space(run.space, run.curv)
    model = Classifier(
        encoder(settings.encoder, channels=dataset.channels, dim=settings.dim),
        len(dataset.classes),
        manifold,
        dataset.mean,
        dataset.std,
        head=settings.head,
        lift=Lift(manifold, run.lift, settings.scale, settings.radius),
    ).to(dataset.train_images.device)
    model.whiten(data.as_float(dataset.train_images[index[:WHITENING]]))
    return model


class Prepared:
    """What runs share that differ only in method: the request, and Retrain's answer, made once when asked."""

    def __init__(self, run: Run, request: Request) -> None:
        self.run, self.request = run, request

    @functools.cached_property
    def retrained(self) -> Outcome:
        """The gold standard of this request, which every other answer is compared with."""
        return METHODS["retrain"](self.request)


def prepare(run: Run, cache: Path | None = None) -> Request:
    """Load the data, make the split and train the original model of a run.

    Args:
        run: what to prepare; its method decides only where checkpoints go.
        cache: folder where trainings leave checkpoints, so that an interrupted one goes on and a
            finished one is read back; None trains in memory.
    """
    settings = run.resolved()
    dataset = _dataset(run.data, settings.train_images, settings.test_images, train.device())
    split = _split(run, dataset)
    everything = torch.cat([split.retain, split.forget]).sort().values
    original = train_on(
        build(run, dataset, everything), dataset, split, everything, settings.training,
        "original", _checkpoint(cache, _original(run)),
    )  # fmt: skip
    return Request(
        model=original.model,
        trained=original.fit,
        fresh=lambda index: build(run, dataset, index),
        dataset=dataset,
        split=split,
        training=settings.training,
        checkpoint=_checkpoint(cache, run),
    )


def _original(run: Run) -> Run:
    """The run whose answer is the original model, the same for every request of a seed."""
    return replace(run, method="original", scenario=SCENARIOS[0], forget=0)


def _checkpoint(cache: Path | None, run: Run) -> Path | None:
    """Where a run's training leaves checkpoints: a folder of the run and of the code that trains."""
    if cache is None:
        return None
    return cache / f"{run.name}-{TRAINING if run.method in ('original', 'retrain') else CODE}"


def run(run: Run, prepared: Request | Prepared | None = None, cache: Path | None = None) -> dict[str, Any]:
    """Do one run and return its record.

    Args:
        run: what to do.
        prepared: for this run or one that differs only in method, what :func:`prepare` returned, or a
            :class:`Prepared`, which trains Retrain but once for all of them; None prepares it now.
        cache: see :func:`prepare`.

    Returns:
        The record: ``run`` (its fields), ``settings``, ``metrics`` (see :func:`hacore.evaluate.evaluate`),
        ``cost`` (seconds, steps, FLOPs, images/s, bytes), ``history`` (one entry an epoch),
        ``environment``, ``command``.
    """
    if not isinstance(prepared, Prepared):
        prepared = Prepared(run, prepared or prepare(run, cache))
    request = prepared.request
    answer = run.resolved().unlearning
    checkpoint = _checkpoint(cache, run)
    outcome = (
        prepared.retrained if run.method == "retrain" else answer(replace(request, checkpoint=checkpoint))
    )
    cost = asdict(outcome.fit)
    history = cost.pop("history")
    return {
        "schema": results.SCHEMA,
        "name": run.name,
        "run": {field.name: getattr(run, field.name) for field in fields(run) if field.name != "settings"},
        "settings": asdict(run.resolved()),
        "metrics": evaluate(outcome.model, request.dataset, request.split, prepared.retrained.model),
        "cost": cost,
        "history": history,
        "environment": environment(),
        "command": run.command,
    }


def grid(
    methods: Iterable[str],
    spaces: Iterable[str] = ("euclidean",),
    lifts: Iterable[str] = ("clipped",),
    seeds: Iterable[int] = (0,),
    **common: Any,
) -> list[Run]:
    """All combinations as runs, ordered so that runs which share an original model follow each other."""
    return [
        Run(method=method, space=space, lift=lift, seed=seed, **common)
        for space, lift, seed, method in product(spaces, lifts, seeds, methods)
    ]


def run_grid(
    runs: Iterable[Run], folder: Path, cache: Path | None = None, redo: bool = False
) -> Iterator[dict[str, Any]]:
    """Do the runs whose record is missing from ``folder``, write each as it is done, yield all records.

    Killed and started again, it redoes only what is missing; with ``redo``, everything.
    """
    shared: Prepared | None = None
    for one in tqdm(list(runs), desc="runs", unit="run", disable=train.quiet()):
        path = Path(folder) / f"{one.name}.json"
        if path.exists() and not redo:
            yield results.read(path)
            continue
        twin = replace(one, method="retrain")
        if shared is None or shared.run != twin:
            shared = Prepared(twin, prepare(twin, cache))
        record = run(one, shared, cache)
        results.write(record, folder)
        yield record


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the settings: versions, hardware, commit, time."""
    device = train.device()
    if device.type == "cuda":
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    else:
        threads = torch.get_num_threads()
        hardware = f"{threads} {'thread' if threads == 1 else 'threads'} of {_cpu()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "hardware": hardware,
        "commit": COMMIT,
        "code": CODE,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    """The processor's name, as Linux gives it, or else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the package's checkout, marked ``-dirty`` when its code differs; else the version."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", ".")
    except (FileNotFoundError, subprocess.CalledProcessError):
        # No git, or installed outside a checkout: the version is all that is known.
        from hacore import __version__

        return f"v{__version__}"
    return commit + ("-dirty" if changed else "")


def _code_digest(parts: tuple[str, ...] | None = None) -> str:
    """A digest of the package's code, or of some of its modules; reports and pictures are left out."""
    package = Path(__file__).parent
    outside = {"__main__.py", "results.py", "plots", "search.py"}
    chosen = [
        path
        for path in sorted(package.rglob("*.py"))
        if (top := path.relative_to(package).parts[0]) not in outside and (parts is None or top in parts)
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in chosen)).hexdigest()[:12]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


# Read when the package is loaded: by the time a record is written, a checkout may have moved on.
COMMIT, CODE, TRAINING = _commit(), _code_digest(), _code_digest(TRAINING_CODE)
