"""Images and texts in one space: CLIP where it is flat, MERU where it is curved.

Derived in the chapter "Images and words in one space".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hacore.data import Tokenizer
from hacore.encoders import Encoder, TextEncoder
from hacore.errors import HacoreError
from hacore.geometry import Hyperbolic, Space
from hacore.losses import (
    angle_similarity,
    clip_loss,
    entailment,
    image_text_contrast,
    positives,
    radius_floor,
)
from hacore.models.base import ImageModel, Lift, as_float32, full_precision

CONTRASTS = ("distance", "angle")
MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class Objective:
    r"""What an image-text model is trained for, besides the contrast; all weights are 0 or more.

    With distances, ``entailment=0.2`` and nothing else this is MERU (:cite:t:`desai2023meru`), and with all weights 0,
    in Euclidean space, CLIP (:cite:t:`radford2021clip`). ``HIERARCHY`` is our recipe for a tree that can be seen:
    contrast by exterior angles, one text for every level, texts in the cones of more general ones, wrong images
    outside of cones, and a least radius for each level, as a cone at the origin has nothing outside.

    Raises:
        HacoreError: if the contrast is unknown, or a weight or angle is out of range.
    """

    contrast: str = "distance"  # what is compared: "distance" (cosine where flat), or the "angle" at the text
    entailment: float = 0.0  # images in the cones of their texts
    text_entailment: float = 0.0  # texts in the cones of more general texts of the same image
    exclusion: float = 0.0  # wrong images outside of the cones of texts
    floor: float = 0.0  # a least radius of the texts of each level
    every_level: bool = False  # one text for every level of an image, not one of them drawn
    margin: float = 0.15  # radians; how far outside of a cone wrong images have to be
    slack: float = 1.0  # share of the half-aperture within which right ones have to be
    min_radius: float = 0.1  # K; at radius asinh(2K) and below a cone is a half-space
    widest: float = 65.0  # degrees; half-aperture at the root that the floor allows
    narrower: float = 15.0  # degrees; by so much less at each level below

    def __post_init__(self) -> None:
        if self.contrast not in CONTRASTS:
            raise HacoreError(
                f"there is no contrast by {self.contrast!r}; choose one of {', '.join(CONTRASTS)}"
            )
        for name in ("entailment", "text_entailment", "exclusion", "floor", "margin"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise HacoreError(f"{name} is {value}; it must be 0 or more, and finite")
        for name in ("slack", "min_radius"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise HacoreError(f"{name} is {value}; it must be positive, and finite")
        if not 0 < self.widest < 90 or not 0 <= self.narrower < 90:
            raise HacoreError(
                f"the root's widest half-aperture is {self.widest} degrees and {self.narrower} less at each level; "
                "choose the first above 0, neither negative, and both below 90"
            )

    @property
    def curved(self) -> bool:
        """Whether it needs cones, which flat space has not."""
        weights = self.entailment + self.text_entailment + self.exclusion + self.floor
        return weights > 0 or self.contrast == "angle"

    def floors(self, levels: int) -> Float[Tensor, " levels"]:
        """For each level the half-aperture, in radians, that the floor allows."""
        degrees = (self.widest - self.narrower * torch.arange(levels)).clamp(min=5.0)
        return torch.deg2rad(degrees)


CLIP = Objective()
MERU = Objective(entailment=0.2)
HIERARCHY = Objective(
    contrast="angle", entailment=5.0, text_entailment=2.0, exclusion=1.0, floor=200.0, every_level=True, slack=0.5,
    margin=0.1,
)  # fmt: skip


class ImageText(ImageModel):
    r"""Images and texts as points of one space, trained so that an image is near what is true of it.

    .. math:: z = \exp_0(e^{\alpha} W f), \qquad s(x, t) = e^{\beta} \, \mathrm{similarity}(z_x, z_t)

    with features :math:`f` of an image or a text, a projection :math:`W` and a scale :math:`e^\alpha \le 1` for each
    of the two, and a logit scale :math:`e^\beta \le 100`. In Euclidean space similarity is the cosine, so that scales
    have no effect: this is CLIP. In a hyperbolic one it is minus the distance: with :data:`MERU` this is MERU.

    Args:
        encoder, space, mean, std, lift: see :class:`~hacore.models.base.ImageModel`; the lift comes after projection
            and scale, so its own scale is usually 1.
        text: reads tokens.
        tokenizer: makes them of texts.
        dim: coordinates of the points.
        objective: what it is trained for; None is :data:`CLIP` in Euclidean space and :data:`MERU` elsewhere.

    Raises:
        HacoreError: if parts do not fit together, or the objective needs cones where space is flat.

    Source: :cite:t:`desai2023meru`; scales and logit scale start and end as there. The curvature is learned if the
    space is learnable, and stays within a factor of 10 of its start by construction.
    """

    kind: ClassVar[str] = "image-text"
    views: ClassVar[int] = 1

    def __init__(
        self,
        encoder: Encoder,
        space: Space,
        mean: Sequence[float],
        std: Sequence[float],
        text: TextEncoder,
        tokenizer: Tokenizer,
        dim: int = 64,
        lift: Lift | None = None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(encoder, space, mean, std, lift or Lift(space, "free", scale=1.0))
        if dim < 1:
            raise HacoreError(f"points need at least one coordinate, not {dim}")
        if tokenizer.size > text.vocabulary or tokenizer.length > text.length:
            raise HacoreError(
                f"the tokenizer makes {tokenizer.size} different tokens, {tokenizer.length} in a text, and the text "
                f"encoder reads {text.vocabulary} and {text.length}; build both for one vocabulary"
            )
        self.objective = objective or (MERU if isinstance(space, Hyperbolic) else CLIP)
        if self.objective.curved and not isinstance(space, Hyperbolic):
            raise HacoreError(
                f"{space.name} space has no cones; choose a hyperbolic space, or the objective CLIP"
            )
        self.text, self.tokenizer = text, tokenizer
        self.visual_proj = nn.Linear(encoder.dim, dim, bias=False)
        self.textual_proj = nn.Linear(text.width, dim, bias=False)
        for projection in (self.visual_proj, self.textual_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        self.visual_alpha = nn.Parameter(torch.tensor(dim**-0.5).log())
        self.textual_alpha = nn.Parameter(torch.tensor(dim**-0.5).log())
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.config |= {
            "kind": self.kind,
            "text": text.config,
            "tokenizer": tokenizer.config,
            "dim": dim,
            "objective": asdict(self.objective),
        }

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Points of images in [0, 1]; raises as :meth:`features`."""
        return self._points(self.visual_proj(self.features(images)), self.visual_alpha)

    def embed_text(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n d"]:
        """Points of texts, from their tokens."""
        return self._points(self.textual_proj(self.text(tokens)), self.textual_alpha)

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Points of texts."""
        return self.embed_text(self.tokenizer.encode(list(texts)).to(self.logit_scale.device))

    def embed_mean(self, tokens: Int[Tensor, "n wordings length"]) -> Float[Tensor, "n d"]:
        """One point for several wordings of the same: that of the mean of their projected features, as in MERU."""
        features = self.textual_proj(self.text(tokens.flatten(0, 1)))
        if not isinstance(self.space, Hyperbolic):
            # Only directions count where similarity is a cosine, so each wording has the same say.
            features = nn.functional.normalize(features, dim=-1)
        return self._points(features.unflatten(0, tokens.shape[:2]).mean(1), self.textual_alpha)

    def _points(self, projected: Float[Tensor, "n d"], alpha: Tensor) -> Float[Tensor, "n d"]:
        with full_precision(projected):
            return self.lift(as_float32(projected) * _at_most(alpha, 0.0).exp())

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by: one over the logit scale, 0.01 or more."""
        return 1 / _at_most(self.logit_scale, MAX_LOGIT_SCALE).exp()

    def compare(self, images: Float[Tensor, "n d"], texts: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """How much texts suit images, as points: what the model was trained to compare, not divided by anything."""
        with full_precision(images):
            if self.objective.contrast == "angle":
                return angle_similarity(texts, images, self.space)
            return self.space.similarity(images, texts)

    @property
    def comparison(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """:meth:`compare` where that is not the similarity of the space, else None."""
        return self.compare if self.objective.contrast == "angle" else None

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The loss of a batch of :class:`hacore.data.Captions`."""
        return self.parts(batch)[0]

    def parts(self, batch: Any) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and its named parts, each without its weight."""
        with self.space.one_curvature():
            images, read = self.embed(batch.images), self.read(batch)
            with full_precision(images):
                return self.objective_of(images, read, batch.statements)

    def read(self, batch: Any, every_level: bool | None = None) -> "Read":
        """The points of the texts of a batch: of one for every level, or of the one drawn for each image.

        None does what the objective says.
        """
        every_level = self.objective.every_level if every_level is None else every_level
        texts = batch.texts if every_level else batch.texts.gather(1, batch.drawn[:, None])
        owner, column = (texts >= 0).nonzero(as_tuple=True)
        level = column if every_level else batch.drawn[owner]
        numbers, tokens = texts[owner, column], batch.tokens[owner, level]
        # Many images share a text, which is read once.
        different, which = numbers.unique(return_inverse=True)
        once = tokens.new_zeros(len(different), tokens.shape[1])
        once[which] = tokens
        return Read(numbers, owner, level, self.embed_text(once)[which])

    def objective_of(
        self, images: Float[Tensor, "n d"], read: "Read", statements: Int[Tensor, "n s"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss, and its parts, of points of images, of texts, and the numbers of all texts true of each image."""
        goal, space = self.objective, self.space
        angles: Tensor | None = None
        if goal.contrast == "angle" or goal.exclusion:
            angles = space.pairwise_exterior_angle(read.points, images)
            true = positives(statements, read.numbers).T
        if goal.contrast == "angle":
            assert angles is not None
            parts = {"contrast": image_text_contrast(-angles.T / self.temperature, true.T)}
        else:
            parts = {
                "contrast": clip_loss(
                    images, read.points, space, 1 / self.temperature,
                    statements=statements, text_ids=read.numbers,
                )
            }  # fmt: skip
        total = parts["contrast"]
        if goal.entailment and angles is None:
            parts["entailment"] = entailment(
                read.points, images[read.owner], space, goal.min_radius, goal.slack
            ).mean()
        elif angles is not None:
            aperture = space.half_aperture(read.points, goal.min_radius)[:, None]
            parts["entailment"] = _mean_where(true, (angles - goal.slack * aperture).relu())
            parts["exclusion"] = _mean_where(~true, (aperture + goal.margin - angles).relu())
        if goal.text_entailment:
            general, special = read.steps()
            parts["text_entailment"] = entailment(
                read.points[general], read.points[special], space, goal.min_radius, goal.slack
            ).mean()
        if goal.floor:
            allowed = goal.floors(int(read.level.max()) + 1).to(images)[read.level]
            parts["floor"] = radius_floor(read.points, allowed, space, goal.min_radius).mean()
        for name, part in parts.items():
            if name != "contrast":
                total = total + getattr(goal, name) * part
        return total, parts


class Read(NamedTuple):
    """The texts of a batch that a model reads: m of them, for n images."""

    numbers: Tensor  # (m,), of the texts; equal texts have equal ones
    owner: Tensor  # (m,), which image of the batch it was drawn for
    level: Tensor  # (m,), 0 for the most general
    points: Tensor  # (m, d)

    def steps(self) -> tuple[Tensor, Tensor]:
        """The texts of an image and, beside each, its next more special one; texts are sorted by owner and level."""
        follows = (self.owner[1:] == self.owner[:-1]).nonzero().squeeze(1)
        return follows, follows + 1


def _mean_where(chosen: Bool[Tensor, "m n"], values: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """The mean of the chosen values, 0 if there are none; without waiting for the device to count them."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _at_most(parameter: Tensor, largest: float) -> Tensor:
    """The parameter cut at ``largest``; beyond, gradients that bring it back pass, others do not."""
    cut: Tensor = _AtMost.apply(parameter, largest)
    return cut


class _AtMost(torch.autograd.Function):
    # MERU cuts the parameter itself, in place; torch.clamp would leave one beyond the bound without any gradient.
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, largest: float) -> Tensor:
        ctx.save_for_backward(parameter)
        ctx.largest = largest
        return parameter.clamp(max=largest)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (parameter,) = ctx.saved_tensors
        return torch.where(parameter > ctx.largest, grads[0].clamp(min=0), grads[0]), None
