"""What a run is and which settings it goes by: profiles, recipes, and values found by search."""

import functools
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hacore import data, train
from hacore.errors import HacoreError
from hacore.geometry import SPACES
from hacore.models import CONTRASTIVE, HIERARCHY, MODES, ImageText, Objective
from hacore.train import TrainConfig
from hacore.unlearning import METHODS, Descent, Method, Training, method

CONCEPTS = ("concepts", "concepts-in-turn")  # of a tree, all at once or one request after the other
SCENARIOS = ("single-class", "random-samples", *CONCEPTS)
# Models of images and texts: CLIP in Euclidean space, MERU in a hyperbolic one; or with a hierarchy that can be seen.
IMAGE_TEXT = ("image-text", "hierarchy")
RECIPES = ("generalising", "memorising", *CONTRASTIVE, *IMAGE_TEXT)
TUNED = Path(__file__).parent.parent / "tuned"


@dataclass(frozen=True)
class Settings:
    """Everything about a run that the profile decides unless the user does."""

    encoder: str
    dim: int  # features, and coordinates of the space
    head: (
        str  # of a classifier "logistic" or "prototype"; else the recipe: "simclr", "moco", "image-text", ...
    )
    scale: float  # from features to tangent vectors
    radius: float  # of the clip or the sphere; unused when free
    training: Training
    unlearning: Method  # with its settings
    train_images: int | None = None  # class-balanced subset; None takes all
    test_images: int | None = None
    label_noise: float = 0.0  # share of training labels replaced by another class


@dataclass(frozen=True)
class PairSettings(Settings):
    """What else there is to decide for models of images and texts."""

    text_width: int = 64
    text_layers: int = 2
    text_heads: int = 4
    learnable: bool = True  # the curvature
    objective: Objective | None = None  # None is the space's: CLIP's or MERU's


@dataclass(frozen=True)
class Run:
    """One run: a method answers one request to forget, with one seed, in one geometry.

    Runs that differ only in ``method`` share split, initial weights and original model, so
    their results can be compared in pairs.
    """

    scenario: str = "single-class"
    data: str = "digits"
    profile: str = "quick"
    recipe: str = "generalising"  # "memorising": without augmentation, or until noise is learned; see RECIPES
    method: str = "contrastive-unlearning"
    space: str = "euclidean"
    lift: str = "clipped"  # how features become points, see hacore.models.Lift
    seed: int = 0
    forget: int | float | str = 5  # the class; in random-samples a count or share; or concepts: "star,cross"
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
        if (self.scenario in CONCEPTS) != (self.recipe in IMAGE_TEXT):
            raise HacoreError(
                f"scenario {self.scenario!r} does not go with recipe {self.recipe!r}: concepts are forgotten by models "
                f"of images and texts, {' or '.join(IMAGE_TEXT)}, and they forget nothing else"
            )
        if isinstance(self.forget, str) != (self.scenario in CONCEPTS):
            raise HacoreError(
                f"{self.forget!r} cannot be forgotten in scenario {self.scenario!r}: concepts are named, with commas "
                "between them, classes and samples are numbers"
            )
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
    def kind(self) -> str:
        """The kind of model that is asked to forget, see ``hacore.unlearning.KINDS``."""
        return model_kind(self.resolved().head)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The names of the nodes to forget, in their order; none where no concepts are forgotten."""
        return tuple(filter(None, self.forget.split(","))) if isinstance(self.forget, str) else ()

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
        """The command that makes this run's record again; settings other than the profile's are named one by one."""
        command = (
            f"hacore run {self.scenario} --data {self.data} --profile {self.profile} --recipe {self.recipe} "
            f"--method {self.method} --space {self.space} --lift {self.lift} --curv {self.curv} "
            f"--forget {shlex.quote(str(self.forget))} --seed {self.seed}"
        )
        return " ".join([command, *(f"--set {name}={value}" for name, value in self._varied().items())])

    def _varied(self) -> dict[str, Any]:
        """The settings, and fields of the method, that are not the profile's; what is nested has no name there."""
        if self.settings is None:
            return {}
        usual, own = (asdict(run.resolved()) for run in (replace(self, settings=None), self))
        for one in (usual, own):
            one |= one.pop("unlearning")
        plain = {name: value for name, value in own.items() if not isinstance(value, dict)}
        return {name: value for name, value in plain.items() if value != usual.get(name)}


def varied(run: Run, changes: Mapping[str, str]) -> Run:
    """The run with some settings, or fields of its method, other than the profile's.

    Args:
        run: with the settings of its profile.
        changes: field -> value, as text: of :class:`Settings` (such as ``dim``), else of the method.

    Raises:
        HacoreError: if neither has such a field, or the value is not of its type.
    """
    chosen = profile(run)
    settings: dict[str, Any] = {}
    answer: dict[str, Any] = {}
    for name, text in changes.items():
        own = name in {field.name for field in fields(chosen)}
        if not own and name not in {field.name for field in fields(chosen.unlearning)}:
            raise HacoreError(
                f"neither the settings nor {run.method} have {name!r}; choose one of "
                f"{', '.join([*asdict(chosen), *asdict(chosen.unlearning)])}"
            )
        kind = type(getattr(chosen if own else chosen.unlearning, name))
        known: dict[type, Callable[[str], Any]] = {
            bool: {"True": True, "False": False}.__getitem__,
            int: int,
            float: float,
            str: str,
        }
        try:
            (settings if own else answer)[name] = known[kind](text)
        except (KeyError, ValueError) as error:
            raise HacoreError(
                f"{name} is {kind.__name__} and cannot be {text!r} on a command line"
            ) from error
    if answer:
        settings["unlearning"] = replace(chosen.unlearning, **answer)
    elif settings:
        # Left open: whichever method answers goes by its searched values.
        settings["unlearning"] = METHODS["original"]
    return replace(run, settings=replace(chosen, **settings)) if settings else run


def model_kind(head: str) -> str:
    """The kind of model with such a head, or trained by a recipe of that name; see ``hacore.unlearning.KINDS``."""
    if head in IMAGE_TEXT:
        return ImageText.kind
    return head if head in CONTRASTIVE else "classifier"


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
    written by :mod:`hacore.search`. Where nothing was searched on CIFAR-100, values searched on CIFAR-10 stand, and
    else the defaults of the method.
    """
    chosen = method(run.method)
    if isinstance(chosen, Descent) and run.recipe in CONTRASTIVE:
        budget = UNLEARNING_WITHOUT_LABELS[run.profile]
        chosen = replace(chosen, batch_size=budget["batch_size"])
        if chosen.epochs < budget["epochs"]:
            chosen = replace(chosen, epochs=budget["epochs"])
    elif isinstance(chosen, Descent) and run.recipe in IMAGE_TEXT:
        chosen = replace(
            chosen, **UNLEARNING_CONCEPTS[run.profile], retain_share=SHARES.get(run.profile, 1.0)
        )
        if chosen.name in OVER_RETAIN:
            chosen = replace(chosen, epochs=1)
    elif isinstance(chosen, Descent):
        chosen = replace(chosen, **UNLEARNING.get(run.profile, {}).get(run.method, {}))
        share = SHARES.get(run.profile, chosen.retain_share)
        chosen = replace(chosen, batch_size=BATCHES.get(run.profile, chosen.batch_size), retain_share=share)
    # One after the other or at once, concepts are forgotten with the same settings.
    scenario = CONCEPTS[0] if run.scenario in CONCEPTS else run.scenario
    found: dict[str, dict[str, Any]] = {}
    for searched_on in (run.data, LIKE.get(run.data)):
        found = found or _tuned_values(TUNED / f"{scenario}-{searched_on}-{run.profile}-{run.recipe}.json")
    values = found.get(f"{run.space} {run.lift} {chosen.tuned_as or run.method}", {})
    if chosen.tuned_as:  # a part that it is without stays out
        values = {name: value for name, value in values.items() if getattr(chosen, name) != 0}
    return replace(chosen, **values)


@functools.cache
def _tuned_values(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _pairs(
    recipe: str,
    encoder: str,
    loop: TrainConfig,
    batch_size: int,
    augment: str,
    train_images: int | None = None,
    **changes: Any,
) -> PairSettings:
    """Settings of a model of images and texts; MERU's free lift has no scale of its own."""
    # Contrast by distance may choose its curvature, as MERU does; the floors of a hierarchy are for one that is given.
    return PairSettings(
        encoder=encoder, dim=64, head=recipe, scale=1.0, radius=4.0,
        training=Training(loop, batch_size=batch_size, augment=augment),
        unlearning=METHODS["original"], train_images=train_images,
        learnable=recipe != "hierarchy", objective=HIERARCHY if recipe == "hierarchy" else None, **changes,
    )  # fmt: skip


def _world(recipe: str) -> Settings:
    """The concept world: 8,000 drawings, twelve epochs, half a minute on one CPU core."""
    if recipe not in IMAGE_TEXT:
        return replace(_digits(recipe), encoder="world", dim=64)
    # Angles learn slower than distances: at the rate of CLIP and MERU two trainings of five stay six points behind.
    loop = TrainConfig(
        epochs=12, lr=1e-2 if recipe == "hierarchy" else 6e-3, optimizer="adamw", schedule="cosine", warmup=0.05,
        weight_decay=0.05,
    )  # fmt: skip
    return _pairs(recipe, "world", loop, batch_size=128, augment="none")


def _digits(recipe: str) -> Settings:
    if recipe in IMAGE_TEXT:
        loop = TrainConfig(
            epochs=40, lr=2e-3, optimizer="adamw", schedule="cosine", warmup=0.05, weight_decay=0.05
        )
        return _pairs(recipe, "cnn", loop, batch_size=64, augment="shift")
    if recipe in CONTRASTIVE:
        # Half of 600 images, so few that the encoder learns them by heart; on all 1,078 membership leaves no
        # trace. The other half is set aside: what an attack finds in fewer images is mostly chance.
        return Settings(
            encoder="cnn",
            dim=32,
            head=recipe,
            scale=0.3,
            radius=4.0,
            training=Training(
                TrainConfig(epochs=200, lr=0.1, schedule="one-cycle"), batch_size=128, augment="simclr-grey"
            ),
            unlearning=METHODS["original"],
            train_images=600,
        )
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
    """A small residual net on 20,000 images: about a CPU minute in bf16, two in float32.

    Without labels it takes 2,000 images and more epochs: contrast needs many views, and few images are learnt
    by heart.
    """
    if recipe in IMAGE_TEXT:
        loop = TrainConfig(
            epochs=10, lr=2e-3, optimizer="muon-adamw", schedule="cosine", warmup=0.05, weight_decay=0.05,
            precision=train.fast_precision(),
        )  # fmt: skip
        return _pairs(recipe, "resnet9", loop, batch_size=250, augment="crop-flip", train_images=20_000)
    if recipe in CONTRASTIVE:
        return Settings(
            encoder="resnet9",
            dim=64,
            head=recipe,
            scale=0.3,
            radius=4.0,
            training=Training(
                TrainConfig(
                    epochs=60, lr=0.05, optimizer="muon", schedule="one-cycle", weight_decay=5e-4,
                    precision=train.fast_precision(),
                ),
                batch_size=250,
                augment="simclr",
            ),
            unlearning=METHODS["original"],
            train_images=2_000,
        )  # fmt: skip
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
    """ResNet-18 with the training settings of Lee et al. (2024), who do not augment; the lift is ours.

    Without labels, those of Wang et al. (2025): 800 epochs, batches of 512.
    """
    if recipe in IMAGE_TEXT:
        loop = TrainConfig(
            epochs=100,
            lr=1e-3,
            optimizer="adamw",
            schedule="cosine",
            warmup=0.05,
            weight_decay=0.2,
            precision="bf16",
        )
        sizes = {"text_width": 256, "text_layers": 6, "text_heads": 4}
        return _pairs(recipe, "resnet18", loop, batch_size=512, augment="crop-flip", **sizes)
    if recipe in CONTRASTIVE:
        return Settings(
            encoder="resnet18",
            dim=128,
            head=recipe,
            scale=0.2,
            radius=4.0,
            training=Training(
                TrainConfig(epochs=800, lr=0.06, nesterov=False, weight_decay=5e-4, precision="bf16"),
                batch_size=512,
                augment="simclr",
            ),
            unlearning=METHODS["original"],
        )
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
    "quick": {"digits": _digits, "world": _world},
    "standard": dict.fromkeys(("cifar10", "cifar100", "svhn"), _cifar),
    "paper": dict.fromkeys(("cifar10", "cifar100", "svhn"), _paper),
}
LIKE = {"cifar100": "cifar10"}  # images of the same size and kind: what was searched on one serves the other
# Images per unlearning step, where the profile's data are fewer than the papers'.
BATCHES = {"quick": 32}
# Of the retain images, those that methods walk over: unlearning is to cost a small part of retraining.
SHARES = {"standard": 0.25}
# Of the training images, those set aside where no label is read and more of them are needed, see _digits.
SET_ASIDE = {"quick": 0.5}
ASIDE = 0.1  # otherwise
# What else a profile sets for a method, before the tuned values.
UNLEARNING: dict[str, dict[str, dict[str, Any]]] = {"quick": {"contrastive-unlearning": {"epochs": 20}}}

# Of models of images and texts: epochs over the forget pairs, a few dozen steps for one concept; and where a search
# begins with the rate, which methods have for SGD, while these models were trained with AdamW.
UNLEARNING_CONCEPTS: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 6, "batch_size": 64, "lr": 3e-4},
    "standard": {"epochs": 4, "batch_size": 128, "lr": 3e-4},
    "paper": {"epochs": 4, "batch_size": 256, "lr": 1e-4},
}
OVER_RETAIN = ("finetune", "neggrad-plus", "l1-sparse")  # which walk over the retain pairs, once

# Without labels every method has the same epochs, a small share of training's, and training's batches, because
# what an image is contrasted with are the others of its batch. Ten of 800 is Wang et al.'s own share.
UNLEARNING_WITHOUT_LABELS: dict[str, dict[str, int]] = {
    "quick": {"epochs": 10, "batch_size": 128},
    "standard": {"epochs": 6, "batch_size": 250},
    "paper": {"epochs": 10, "batch_size": 512},
}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
