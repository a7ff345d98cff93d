"""Forgetting concepts in models of images and texts: alignment calibration, flat and hyperbolic, and two baselines."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from hacore import losses
from hacore.data import Captioned, Pair, forgotten_nodes
from hacore.errors import HacoreError
from hacore.losses import Weights, hyperbolic_alignment_calibration, positives
from hacore.models import ImageText
from hacore.unlearning.base import Descent, Method, Outcome, Range, Request
from hacore.unlearning.cost import timed


def parents_of(dataset: Captioned, nodes: tuple[int, ...]) -> Int64[Tensor, "classes length"]:
    """For each class the tokens of its parent's first prompt: the forgotten concept's parent, or else its leaf's own.

    Raises:
        HacoreError: if the root is to be forgotten, which has no parent.
    """
    if 0 in nodes:
        raise HacoreError("the root of the tree is everything there is; forget a part of it")
    tree = dataset.tree
    parent = [
        tree.parents[next((node for node in tree.ancestors(leaf) if node in nodes), leaf)]
        for leaf in dataset.leaf_of
    ]
    prompts = dataset.prompts[torch.tensor(parent, device=dataset.prompts.device), 0]
    return dataset.tokens[prompts]


@dataclass(frozen=True, kw_only=True)
class AC(Descent):
    r"""Alignment calibration of image-text pairs: forget pairs apart, mismatched ones together, the rest as trained.

    The loss is :func:`hacore.losses.hyperbolic_alignment_calibration` without cones and radii, in the geometry of the
    model; on CLIP, alignment calibration. A step sees a batch of forget pairs and a batch of retain pairs.

    Source: :cite:t:`wang2025muc`, whose loss for CLIP was not available to us: that it is this sum of its three terms
    is our reading. Derived in the chapter *Alignment calibration for CLIP*.

    Raises:
        HacoreError: if a weight is negative.
    """

    name = "ac"
    kinds = (ImageText.kind,)

    lr: float = 3e-4
    epochs: int = 4  # over the forget images
    # Similarities are divided by the temperature, about 1/20 after training: at weight 1 these terms drown the rest.
    negative: float = 0.01  # alpha, mismatched pairs together
    positive: float = 0.01  # beta, true pairs apart
    preserving: float = 0.01  # epsilon, spread of forget images over texts
    bound: str = "margin"  # of the push: "none" lets it go on for ever

    search: ClassVar[dict[str, Range]] = {
        "lr": Range(3e-5, 3e-3),
        "negative": Range(0.001, 0.3),
        "positive": Range(0.001, 0.3),
        "preserving": Range(0.001, 0.3),
    }

    @property
    def weights(self) -> Weights:
        """The weights of the loss."""
        return Weights(
            negative=self.negative, positive=self.positive, preserving=self.preserving, bound=self.bound
        )

    def answer(self, request: Request) -> Outcome:
        parents = parents_of(request.captioned, forgotten_nodes(request.captioned, request.split))
        return self.descend(request, self.pairs(request), partial(self.loss, parents=parents))

    def loss(
        self, model: ImageText, batch: Pair, parents: Int64[Tensor, "classes length"]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The calibrated loss of a pair of batches, and its parts; ``parents`` has the tokens for each class."""
        with model.space.one_curvature():
            return self._loss(model, batch, parents)

    def _loss(
        self, model: ImageText, batch: Pair, parents: Int64[Tensor, "classes length"]
    ) -> tuple[Tensor, dict[str, Any]]:
        forget, retain = batch.forget, batch.retain
        points = model.embed(torch.cat([forget.images, retain.images]))
        images, retained = points.split([len(forget.images), len(retain.images)])
        said, others = model.read(forget, every_level=False), model.read(retain)
        kept, _ = model.objective_of(retained, others, retain.statements)
        candidates = torch.cat([said.points, others.points])
        true = positives(forget.statements, torch.cat([said.numbers, others.numbers]))
        above = model.embed_text(parents[forget.labels]) if self.weights.parent else None
        return hyperbolic_alignment_calibration(
            kept, images, said.points, candidates, true, model.space, 1 / model.temperature, self.weights,
            parents=above, min_radius=model.objective.min_radius, compare=model.comparison,
            own=torch.arange(len(images), device=images.device),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HAC(AC):
    r"""Hyperbolic alignment calibration: alignment calibration, and forget images leave the cones of their texts.

    To the terms of :class:`AC` come entailment calibration, a hinge that pushes forget images out of their text's
    cone, and norm regularisation, the squared deviation of their radius from ``target``.

    Source: :cite:t:`pujolvidal2025hac`. No code and no equation of it was available to us: every term is our reading
    of the abstract; derived in the chapter *Hyperbolic alignment calibration*.

    Raises:
        HacoreError: if a weight is negative, or the model's space is flat.
    """

    name = "hac"
    needs_cones = True

    entailment: float = 1.0  # lambda_e, out of the text's cone
    norm: float = 0.1  # lambda_n, towards the target radius
    parent: float = 0.0  # into the cone of the concept's parent
    margin: float = 0.1  # radians outside of the cone
    target: float = 0.0  # geodesic radius; 0 is the root

    search: ClassVar[dict[str, Range]] = {**AC.search, "entailment": Range(0.1, 10.0)}

    @property
    def weights(self) -> Weights:
        """The weights of the loss."""
        return Weights(
            negative=self.negative, positive=self.positive, preserving=self.preserving, bound=self.bound,
            entailment=self.entailment, norm=self.norm, parent=self.parent, margin=self.margin, target=self.target,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HACKeepParent(HAC):
    """HAC that holds forget images in the cone of the concept's parent: forget the dog, keep the animal.

    Norm regularisation, which pulls to the root, would pull them out of the parent's cone again, and is left out.
    Not in the source.
    """

    name = "hac-keep-parent"

    norm: float = 0.0
    parent: float = 1.0


@dataclass(frozen=True, kw_only=True)
class HACWithoutNegative(HAC):
    """HAC without negative calibration, for the ablation."""

    name = "hac-without-negative"
    tuned_as = "hac"
    search: ClassVar[dict[str, Range]] = {}

    negative: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HACWithoutPositive(HAC):
    """HAC without positive calibration, for the ablation."""

    name = "hac-without-positive"
    tuned_as = "hac"
    search: ClassVar[dict[str, Range]] = {}

    positive: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HACWithoutPreserving(HAC):
    """HAC without the performance-preserving term, for the ablation."""

    name = "hac-without-preserving"
    tuned_as = "hac"
    search: ClassVar[dict[str, Range]] = {}

    preserving: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HACWithoutEntailment(HAC):
    """HAC without entailment calibration, for the ablation."""

    name = "hac-without-entailment"
    tuned_as = "hac"
    search: ClassVar[dict[str, Range]] = {}

    entailment: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HACWithoutNorm(HAC):
    """HAC without norm regularisation, for the ablation."""

    name = "hac-without-norm"
    tuned_as = "hac"
    search: ClassVar[dict[str, Range]] = {}

    norm: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ImageContrast(Descent):
    r"""Contrastive unlearning of images alone: forget images to other concepts' images, texts as trained.

    :math:`\lambda_{UL} L_{UL} + L(D_r)` with the loss of :cite:t:`lee2024contrastive` for classes (Eq. 6) between
    images, and the model's own loss in place of cross-entropy.
    """

    name = "image-contrast"
    kinds = (ImageText.kind,)

    lr: float = 3e-4
    epochs: int = 4
    temperature: float = 0.5  # in units of similarity
    weight_ul: float = 1.0

    search: ClassVar[dict[str, Range]] = {
        "lr": Range(3e-5, 3e-3),
        "temperature": Range(0.1, 2.0),
        "weight_ul": Range(0.1, 10.0),
    }

    def answer(self, request: Request) -> Outcome:
        return self.descend(request, self.pairs(request), self.loss)

    def loss(self, model: ImageText, batch: Pair) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a pair of batches, and its parts."""
        forget, retain = batch.forget, batch.retain
        with model.space.one_curvature():
            points = model.embed(torch.cat([forget.images, retain.images]))
            images, retained = points.split([len(forget.images), len(retain.images)])
            kept, _ = model.objective_of(retained, model.read(retain), retain.statements)
            pushed = losses.contrastive_unlearning(
                images, forget.labels, retained, retain.labels, model.space, self.temperature
            )
        return kept + self.weight_ul * pushed, {"retain": kept, "unlearning": pushed}


@dataclass(frozen=True, kw_only=True)
class NullSpace(Method):
    r"""Train nothing: take the direction of the concept's text out of the images.

    With :math:`u` the direction of the concept's prompts in the tangent space at the origin, less its part along the
    parent's, the projection of images becomes :math:`(I - u u^\top) W`; several concepts take several directions.
    The text encoder stays as it is. The projection is that of :cite:t:`ravfogel2020`, with the direction read off the
    text instead of fitted to images; less the parent, or the concept's kind would go with it.
    """

    name = "null-space"
    kinds = (ImageText.kind,)

    def answer(self, request: Request) -> Outcome:
        return Outcome(*timed(lambda: self.project(request), request.model))

    @staticmethod
    @torch.no_grad()
    def project(request: Request) -> ImageText:
        """The model without these directions."""
        model: ImageText = copy.deepcopy(request.model)
        data, nodes = request.captioned, forgotten_nodes(request.captioned, request.split)
        if 0 in nodes:
            raise HacoreError("the root of the tree is everything there is; forget a part of it")

        def directions(which: list[int]) -> Tensor:
            prompts = data.prompts[torch.tensor(which, device=data.prompts.device)]
            points = model.embed_mean(data.tokens[prompts])
            return torch.nn.functional.normalize(model.space.log0(points), dim=-1)

        concept = directions(list(nodes))
        parent = directions([data.tree.parents[node] for node in nodes])
        concept = concept - (concept * parent).sum(1, keepdim=True) * parent
        basis = torch.linalg.qr(concept.T).Q
        weight = model.visual_proj.weight
        weight -= basis @ (basis.T @ weight)
        return model
