"""SISA: sharded, isolated, sliced and aggregated training, of which only the touched part is redone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.geometry import Euclidean
from hacore.models import Classifier
from hacore.train import Fit
from hacore.unlearning.base import Method, Outcome, Request, train_on
from hacore.unlearning.cost import combined


class Ensemble(Classifier):
    r"""Classifiers that answer together: :math:`\log \frac{1}{S} \sum_s p_s(y | x)`.

    It is used like a :class:`Classifier` with points in Euclidean space: the members' points, each as
    tangent vector at the origin of its member's space, side by side. It has no encoder of its own, so
    it can be evaluated and trained on, but not rebuilt from a ``config``.

    Raises:
        HacoreError: if there are no members, or they have different classes.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        nn.Module.__init__(self)
        if not members or len({member.classes for member in members}) > 1:
            raise HacoreError("an ensemble needs at least one member, all of the same classes; check them")
        self.members = nn.ModuleList(members)
        self.classes, self.space = members[0].classes, Euclidean()
        self.dims = [member.encoder.dim for member in members]

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The members' tangent vectors for images in [0, 1], side by side."""
        return torch.cat([member.space.log0(member.embed(images)) for member in self._members()], dim=1)

    def logits(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logarithm of the members' mean probabilities."""
        parts = zip(self._members(), points.split(self.dims, dim=1), strict=True)
        votes = [member.logits(member.space.exp0(part)).log_softmax(dim=1) for member, part in parts]
        return torch.stack(votes).logsumexp(dim=0) - math.log(len(votes))

    def _members(self) -> list[Classifier]:
        return [member for member in self.members if isinstance(member, Classifier)]


@dataclass(frozen=True, kw_only=True)
class Sisa(Method):
    r"""Train one model per shard, slice by slice; retrain shards from the first slice that lost an image.

    The training images are divided at random into :math:`S` shards of :math:`R` slices. A model
    trains on slice 1, then on slices 1 and 2, and so on; each stage with the loop's schedule and

    .. math:: e = \frac{2 E}{R + 1}

    epochs, rounded, so that all stages together see as many images as :math:`E` epochs on the shard. The
    answer is the ensemble trained without the forget images: exact, as if they had never been there. The
    cost is what must be redone: in each shard, the stages from the first slice with a forget image on. The
    stages before are part of the original training, are done here only because nobody kept their
    checkpoints, and cost nothing. Since random requests of any size touch all shards, they save little.

    Source: :cite:t:`bourtoule2021`, which leaves the aggregation open (majority or mean of probabilities);
    the mean keeps probabilities. Its 20 shards are too many for our small data. A frozen first layer is
    fitted to the shard's first slice, so that a later slice cannot change an earlier stage. Each stage
    starts with fresh momentum; members start from the same weights and differ by data and order.
    """

    name = "sisa"

    shards: int = 5  # S
    slices: int = 2  # R

    def answer(self, request: Request) -> Outcome:
        done = [self.member(request, shard, parts) for shard, parts in enumerate(self.parts(request))]
        redone = combined(*(fit for _, fits in done for fit in fits))
        return Outcome(Ensemble([model for model, _ in done]).eval(), redone)

    def parts(self, request: Request) -> list[list[Int64[Tensor, "k"]]]:
        """The training images of each slice of each shard, forget images included."""
        split, seed = request.split, request.training.loop.seed
        everything = torch.cat([split.retain, split.forget]).sort().values
        if min(self.shards, self.slices) < 1 or self.shards * self.slices > len(everything) // 2:
            raise HacoreError(
                f"sisa cannot divide {len(everything)} images into {self.shards} shards of {self.slices} "
                "slices; use at least one of each, and fewer than half as many as images"
            )
        order = torch.randperm(len(everything), generator=generator(seed, "sisa")).to(everything.device)
        shards = everything[order].tensor_split(self.shards)
        return [list(shard.tensor_split(self.slices)) for shard in shards]

    def member(
        self, request: Request, shard: int, parts: list[Int64[Tensor, "k"]]
    ) -> tuple[Classifier, list[Fit]]:
        """The model of one shard, and the costs of the stages that had to be redone."""
        training, forget = request.training, request.split.forget
        kept = [part[~torch.isin(part, forget)] for part in parts]
        touched = [len(part) < len(all_) for part, all_ in zip(kept, parts, strict=True)]
        if len(kept[0]) < 2:
            raise HacoreError(
                f"the first slice of shard {shard} of sisa keeps {len(kept[0])} images; use fewer shards or slices"
            )
        epochs = max(1, round(2 * training.loop.epochs / (self.slices + 1)))
        loop = replace(training.loop, epochs=epochs)
        model, redone = request.fresh(kept[0]), []
        for stage in range(self.slices):
            # Another order in every shard and stage; far apart, so that no two runs share one.
            seed = (training.loop.seed + 7919 * (shard * self.slices + stage + 1)) % 2**32
            outcome = train_on(
                model, request.dataset, request.split, torch.cat(kept[: stage + 1]).sort().values,
                replace(training, loop=replace(loop, seed=seed)), self.name,
                request.checkpoint and request.checkpoint / f"shard-{shard}-slice-{stage}",
            )  # fmt: skip
            if any(touched[: stage + 1]):
                redone.append(outcome.fit)
        return model, redone
