r"""Contrast: an anchor must be told from everything it is compared with by its one positive.

NT-Xent, InfoNCE between two views and InfoNCE with a queue differ only in what an anchor is compared with.
For anchor :math:`i` with positive :math:`p(i)` among its candidates :math:`C_i`, and :math:`s` the similarity
of the space, all three are the mean of

.. math:: \ell_i = -\log \frac{e^{s_{i p(i)} / \tau}}{\sum_{j \in C_i} e^{s_{ij} / \tau}}
          = \underbrace{\log \sum_{j \in C_i} e^{s_{ij} / \tau}}_{\text{spread}}
          - \underbrace{\frac{s_{i p(i)}}{\tau}}_{\text{alignment}},

whose two terms :cite:t:`wangisola2020` call alignment and uniformity: the positive is pulled near, everything
is pushed apart. Rows of the matrix of similarities are independent, so that it is worked off in pieces of
rows whose matrix is dropped and computed anew for the gradient: memory grows linearly with the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hacore.errors import HacoreError
from hacore.geometry import Space
from hacore.losses.checks import check_temperature
from hacore.losses.processes import gather_with_gradient, world

LARGEST = 2048 * 2048  # similarities that are kept for the gradient rather than computed twice


class Terms(NamedTuple):
    """What pulls and what pushes each anchor, both divided by the temperature; its loss is spread - alignment."""

    alignment: Float[Tensor, "anchors"]  # the similarity with the positive
    spread: Float[
        Tensor, "anchors"
    ]  # log-sum-exp over everything the anchor is compared with, positive included


def nt_xent_terms(
    x: Float[Tensor, "n _"],
    y: Float[Tensor, "m _"],
    space: Space,
    temperature: float,
    chunk: int | None = None,
) -> Terms:
    r"""The terms of NT-Xent: each of 2n views against all others, its positive being the other view of its image.

    Anchors are :math:`x_1, \dots, x_n, y_1, \dots, y_n`; each is compared with all 2n views but itself. With
    several processes anchors are those of this process and candidates those of all, with their gradients: the
    mean of the losses, and of their gradients, over processes is that of the whole batch in one process.

    Args:
        x: points of the space, first views.
        y: points of the space, second views of the same n images.
        space: the geometry both live in.
        temperature: :math:`\tau > 0`, in units of similarity.
        chunk: anchors worked off at a time, in k · 2n numbers of memory; None keeps all in one piece up to
            2n = 2,048 and takes pieces as large beyond. Values do not depend on it.

    Returns:
        Terms of the 2n anchors.

    Raises:
        HacoreError: if there are fewer than two pairs, views do not pair up, ``temperature <= 0``, ``chunk < 1``,
            or (in every process) processes hold batches of different shapes.

    Source: :cite:t:`chen2020simclr`, Eq. 1 and Algorithm 1.
    """
    _check_views(x, y)
    check_temperature(temperature)
    anchors = torch.cat([x, y])
    everyone = gather_with_gradient(anchors)
    _check_pairs(len(everyone) // 2, "NT-Xent")
    number = torch.arange(len(anchors), device=anchors.device)
    first = world()[0] * len(anchors)  # where the anchors of this process stand among all
    own, positive = first + number, first + number.roll(-len(x))

    def piece(rows: slice) -> Terms:
        logits = space.similarity(anchors[rows], everyone) / temperature
        return _terms(logits, positive[rows], own[rows])

    return _in_pieces(piece, len(anchors), len(everyone), chunk)


def nt_xent(
    x: Float[Tensor, "n _"],
    y: Float[Tensor, "m _"],
    space: Space,
    temperature: float,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""The loss of SimCLR, the mean of spread - alignment over the 2n views of :func:`nt_xent_terms`.

    .. math:: L = -\frac{1}{2n} \sum_{i=1}^{2n} \log \frac{e^{s_{i p(i)} / \tau}}{\sum_{j \ne i} e^{s_{ij} / \tau}}

    It is :math:`\log(2n - 1)` for embeddings that are all the same. Arguments, errors and source as there.
    """
    terms = nt_xent_terms(x, y, space, temperature, chunk)
    return (terms.spread - terms.alignment).mean()


def queue_terms(
    q: Float[Tensor, "n _"],
    k: Float[Tensor, "k _"],
    queue: Float[Tensor, "m _"],
    space: Space,
    temperature: float,
    chunk: int | None = None,
) -> Terms:
    r"""The terms of InfoNCE with a queue, as in MoCo: query i against its own key and m keys of earlier batches.

    :math:`\ell_i = -\log \dfrac{e^{s(q_i, k_i)/\tau}}{e^{s(q_i, k_i)/\tau} + \sum_j e^{s(q_i, u_j)/\tau}}` with
    :math:`u_j` the queue. Keys of the other queries of the batch are not compared with.

    Args:
        q: points of the space, the queries.
        k: points of the space, the keys of the same n images.
        queue: points of the space, the negatives.
        space: the geometry all live in.
        temperature: :math:`\tau > 0`, in units of similarity.
        chunk: queries worked off at a time, as in :func:`nt_xent_terms`.

    Returns:
        Terms of the n queries. Nothing is gathered here: each process has its queries and the common queue.

    Raises:
        HacoreError: if keys do not pair up with queries, the queue is empty or of another dimension,
            ``temperature <= 0`` or ``chunk < 1``.

    Source: :cite:t:`he2020moco`, Eq. 1 and Algorithm 1.
    """
    _check_views(q, k, "queries and keys")
    if len(q) == 0:
        raise HacoreError("a contrast with a queue needs at least one query; give a batch that is not empty")
    if len(queue) == 0:
        raise HacoreError(
            "the queue of keys is empty, so there is nothing to tell the positive from: fill it first"
        )
    if queue.shape[1] != q.shape[1]:
        raise HacoreError(
            f"the queries have {q.shape[1]} dimensions and the queue {queue.shape[1]}: build both with one encoder"
        )
    check_temperature(temperature)

    def piece(rows: slice) -> Terms:
        positive = space.paired_similarity(q[rows], k[rows])[:, None]
        logits = torch.cat([positive, space.similarity(q[rows], queue)], dim=1) / temperature
        return _terms(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    return _in_pieces(piece, len(q), 1 + len(queue), chunk)


def info_nce(
    x: Float[Tensor, "n _"],
    y: Float[Tensor, "m _"],
    space: Space,
    temperature: float,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""Symmetric InfoNCE: row i of ``x`` and of ``y`` are two views of one thing, all other rows are not.

    With :math:`s_{ij}` the similarity of :math:`x_i` and :math:`y_j` in the space,

    .. math:: L = -\frac{1}{2n} \sum_i \left[\log \frac{e^{s_{ii}/\tau}}{\sum_j e^{s_{ij}/\tau}}
              + \log \frac{e^{s_{ii}/\tau}}{\sum_j e^{s_{ji}/\tau}}\right].

    With several processes, rows are compared with those of all, as in :func:`nt_xent_terms`.

    Args:
        x: points of the space.
        y: points of the space, as many.
        space: the geometry both live in.
        temperature: :math:`\tau > 0`, in units of similarity.
        chunk: rows worked off at a time, as in :func:`nt_xent_terms`.

    Raises:
        HacoreError: if the views are not equally many, at least two, ``temperature <= 0``, ``chunk < 1``, or
            (in every process) processes hold batches of different shapes.

    Source: :cite:t:`oord2018cpc`, in the symmetric form of :cite:t:`radford2021clip`, which
    :cite:t:`khalil2025coun` use between two views; chapter *Learning from what remains*.
    """
    _check_views(x, y)
    check_temperature(temperature)
    everyone = gather_with_gradient(x), gather_with_gradient(y)
    _check_pairs(len(everyone[0]), "InfoNCE")
    positive = world()[0] * len(x) + torch.arange(len(x), device=x.device)

    def direction(anchors: Tensor, candidates: Tensor) -> Tensor:
        def piece(rows: slice) -> Terms:
            return _terms(space.similarity(anchors[rows], candidates) / temperature, positive[rows])

        terms = _in_pieces(piece, len(anchors), len(candidates), chunk)
        return (terms.spread - terms.alignment).mean()

    return (direction(x, everyone[1]) + direction(y, everyone[0])) / 2


def _terms(
    logits: Float[Tensor, "rows columns"],
    positive: Int[Tensor, "rows"],
    own: Int[Tensor, "rows"] | None = None,
) -> Terms:
    """The one core of all contrast: rows of logits, the column of the positive, and that of the anchor itself."""
    alignment = logits.gather(1, positive[:, None]).squeeze(1)
    if own is not None:
        logits = logits.scatter(1, own[:, None], -torch.inf)
    return Terms(alignment, logits.logsumexp(1))


def _in_pieces(piece: Callable[[slice], Terms], rows: int, columns: int, chunk: int | None) -> Terms:
    """The terms of all rows; with more than one piece, the matrix of each is computed again for its gradient."""
    if chunk is not None and chunk < 1:
        raise HacoreError(f"a chunk takes at least one anchor at a time, not {chunk}; None chooses a size")
    size = max(1, LARGEST // columns) if chunk is None else chunk
    if size >= rows:
        return piece(slice(0, rows))
    # Nothing in a piece is random, so no state of a random generator has to be kept for the second time.
    pieces = [
        checkpoint(piece, slice(start, start + size), use_reentrant=False, preserve_rng_state=False)
        for start in range(0, rows, size)
    ]
    return Terms(torch.cat([part.alignment for part in pieces]), torch.cat([part.spread for part in pieces]))


def _check_views(x: Tensor, y: Tensor, names: str = "first and second views") -> None:
    if x.shape[1] != y.shape[1]:
        raise HacoreError(
            f"{names} have {x.shape[1]} and {y.shape[1]} dimensions: they must be points of one space"
        )
    if len(x) != len(y):
        raise HacoreError(
            f"a contrast pairs {names}, so give as many first as second, not {len(x)} and {len(y)}"
        )


def _check_pairs(pairs: int, name: str) -> None:
    if pairs < 2:
        raise HacoreError(
            f"{name} tells a pair from others, so it needs at least two pairs in a batch, not {pairs}"
        )
