r"""What the owner of images can tell from outside: did the service change on them more than on others?

The owner sends two augmented views of each of n images before the request to forget and after it, and sees
embeddings alone. :math:`S_{ij}` is the similarity of image i in one view and image j in the other. The *forgetting
score* is the mean drop of the true pairs, :math:`\frac1n \sum_i (S_{ii}^{before} - S_{ii}^{after})`: so the summary
of :cite:t:`wang2025muc` describes it; their exact formula was not available to us.

That number alone proves nothing, for every change of a model moves all its similarities, and two models may
differ in scale. The calibrated score therefore counts in standard deviations of mismatched pairs, and compares
with control images that the service was never asked to forget.
Derived in the chapter "The owner's audit".
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate.outputs import wide
from hacore.geometry import Space

FEWEST = 10  # images; of fewer, chance alone makes one in a few hundred arrangements as extreme as can be
SIGNIFICANT = 0.05
PERMUTATIONS = 9999
RESAMPLES = 2000
ROWS = 1024  # of a matrix of similarities in memory at a time

FORGOTTEN: Literal["visibly forgotten"] = "visibly forgotten"
UNCHANGED: Literal["no visible change"] = "no visible change"
LIKE_CONTROL: Literal["changed, but no more than the control"] = "changed, but no more than the control"
Verdict = Literal["visibly forgotten", "no visible change", "changed, but no more than the control"]

# Any shape: what does not fit is told in a sentence.
Points = Float[Tensor, "..."]
FourViews = tuple[Points, Points, Points, Points]


@dataclass(frozen=True)
class Audit:
    """What an owner learns from the embeddings of n images, see :func:`audit`.

    Attributes:
        n, n_control: how many own images, and control images (0: there were none).
        raw, raw_low, raw_high: the forgetting score, the mean drop of the own true pairs in units of the
            similarity, and its interval; without meaning where the two services have different geometries.
        score, low, high: the calibrated score, in standard deviations of mismatched pairs, and its interval.
        p_value: of the test that the calibrated score is not above 0.
        drop, control_drop: the two standardised mean drops whose difference is ``score``: of the own true
            pairs, and of the control's (without a control: of the own mismatched pairs).
        before, after: mean similarity of the own true pairs.
        control_before, control_after: the same of the control; None without one.
        level: of the intervals.
        verdict: "visibly forgotten" where ``p_value`` is at most 5 %; "changed, but no more than the control"
            where it is not, but the interval of ``drop`` leaves out 0; else "no visible change".
    """

    n: int
    n_control: int
    raw: float
    raw_low: float
    raw_high: float
    score: float
    low: float
    high: float
    p_value: float
    drop: float
    control_drop: float
    before: float
    after: float
    control_before: float | None
    control_after: float | None
    level: float
    verdict: Verdict

    def sentence(self) -> str:
        """The result in plain English, for the owner of the images."""
        measured = (
            f"{abs(self.score):.2f} standard deviations {'more' if self.score >= 0 else 'less'} "
            f"({100 * self.level:g} % interval {self.low:.2f} to {self.high:.2f}, p = {self.p_value:.4f})"
        )
        other = (
            f"that of {self.n_control} control images" if self.n_control else "that of two different images"
        )
        start = (
            f"To the service, the likeness of two views of each of your {self.n} images dropped by {measured} "
            f"than {other}"
        )
        text = {
            FORGOTTEN: f"{start}: your images were visibly forgotten.",
            LIKE_CONTROL: f"{start}, no more than by chance: it changed, but not on your images in particular.",
            UNCHANGED: f"{start}, no more than by chance: there is no visible change.",
        }[self.verdict]
        if not self.n_control:
            text += (
                " There were no control images, so that this cannot be told from a change of the service on all "
                "images alike; repeat the audit with images it was never asked to forget."
            )
        return (
            f"{text} A visible change does not prove that your images are forgotten, and no visible change does "
            "not prove that they are not: a service can change what it shows and keep what it knows, and one that "
            "was trained anew without your images may show little."
        )


class FalseAlarms(NamedTuple):
    """How often an audit calls images forgotten that nobody asked to forget."""

    rate: float  # in percent
    alarms: int
    repeats: int


class _Parts(NamedTuple):
    """What a test needs, of every image: similarity of its true pair before and after, and its calibrated drop."""

    before: Tensor  # (n,)
    after: Tensor  # (n,)
    drop: Tensor  # (n, audits), of the true pair in standard deviations of mismatched pairs
    own_mismatched: Tensor  # (n, audits), the drop of the mean mismatched pair of the image


def audit(
    before_first: Points,
    before_second: Points,
    after_first: Points,
    after_second: Points,
    space_before: Space,
    space_after: Space,
    control: FourViews | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Audit:
    r"""Did the service forget the owner's images, as far as their embeddings show?

    Each matrix is standardised by the mean :math:`\mu` and the standard deviation :math:`\sigma` of its
    off-diagonal entries (of own and control images together, so that both are measured alike):

    .. math:: d_i = \frac{S_{ii}^{before} - \mu^{before}}{\sigma^{before}}
              - \frac{S_{ii}^{after} - \mu^{after}}{\sigma^{after}}.

    With a control, the score is the mean of :math:`d_i` over own images minus that over control images, and
    the p-value that of a permutation of images between the two groups; it is exact, whatever the service did,
    if it did the same to both and they were alike before. Members of the training set against images that were
    never in it are not: an update without any request is then called forgetting too often (chapter *The owner's
    audit*); a fair control was trained on too. Without a control, the mean mismatched pair of row i takes the
    place of :math:`\mu`, the score is the mean of :math:`d_i`, and the p-value that of a flip of the signs of
    :math:`d_i`. That test cannot tell forgetting from any other loss of alignment, and as :math:`\sigma` is
    estimated from few images, its level is 8 % for 10 or 20 images rather than 5 %, which it has from about 50 on.

    Both tests are one-sided, at 5 %, with 9,999 seeded permutations and one added to the count, so that no
    p-value is 0. Intervals are percentiles of 2,000 bootstrap samples of images, :math:`\mu` and
    :math:`\sigma` held fixed.

    Args:
        before_first, before_second, after_first, after_second: points (n, d) of two augmented views of the same
            n images in the same order; d may differ between before and after.
        space_before, space_after: where the points live.
        control: the same four of other images that the service was never asked to forget, best of the kind of
            the own ones and as many.
        seed: of permutations and bootstrap.
        level: of the intervals, in (0, 1).

    Raises:
        HacoreError: if shapes do not fit, there are fewer than ten images, points are not finite, two views are
            identical, or all mismatched pairs are equally similar.
    """
    if not 0 < level < 1:
        raise HacoreError(f"an interval needs a level between 0 and 1, not {level}; try level=0.95")
    pool = _pooled((before_first, before_second, after_first, after_second), control)
    n, n_control = len(before_first), len(pool[0]) - len(before_first)
    everyone = torch.ones(n + n_control, 1, dtype=torch.bool)
    parts = _standardised(pool, (space_before, space_after), everyone)
    drop, mismatched = parts.drop.squeeze(1), parts.own_mismatched.squeeze(1)
    own, rest = drop[:n], drop[n:]
    raw = (parts.before - parts.after)[:n]
    change = (0.0, 0.0)
    # One set of resamples for all intervals.
    mine = torch.randint(n, (RESAMPLES, n), generator=generator(seed, "audit", "own"))
    if n_control:
        theirs = torch.randint(
            n_control, (RESAMPLES, n_control), generator=generator(seed, "audit", "control")
        )
        resampled = own[mine].mean(1) - rest[theirs].mean(1)
        control_drop = rest.mean().item()
        p_value = permutation_p_values(own[:, None], rest[:, None], seed).item()
        change = _interval(own[mine].mean(1), level)
    else:
        paired = own - mismatched
        resampled = paired[mine].mean(1)
        control_drop = mismatched.mean().item()
        p_value = sign_flip_p_values(paired[:, None], seed).item()
    low, high = _interval(resampled, level)
    raw_low, raw_high = _interval(raw[mine].mean(1), level)
    verdict: Verdict = UNCHANGED
    if p_value <= SIGNIFICANT:
        verdict = FORGOTTEN
    elif not change[0] <= 0 <= change[1]:
        verdict = LIKE_CONTROL
    return Audit(
        n=n,
        n_control=n_control,
        raw=raw.mean().item(),
        raw_low=raw_low,
        raw_high=raw_high,
        score=own.mean().item() - control_drop,
        low=low,
        high=high,
        p_value=p_value,
        drop=own.mean().item(),
        control_drop=control_drop,
        before=parts.before[:n].mean().item(),
        after=parts.after[:n].mean().item(),
        control_before=parts.before[n:].mean().item() if n_control else None,
        control_after=parts.after[n:].mean().item() if n_control else None,
        level=level,
        verdict=verdict,
    )


def image_drops(
    own: FourViews, space_before: Space, space_after: Space, control: FourViews | None = None
) -> tuple[Float[Tensor, "n"], Float[Tensor, "m"]]:
    """The drop :math:`d_i` of each own image, and what :func:`audit` compares with it, in standard deviations.

    That is the drop of each control image or, without any, of the mean mismatched pair of each own image: the
    difference of the two means is the calibrated score. Arguments and errors as there, ``own`` being its first four.
    """
    pool = _pooled(own, control)
    parts = _standardised(pool, (space_before, space_after), torch.ones(len(pool[0]), 1, dtype=torch.bool))
    mine, rest = parts.drop.squeeze(1).tensor_split([len(own[0])])
    return mine, rest if control is not None else parts.own_mismatched.squeeze(1)


def false_alarm_rate(
    before_first: Points,
    before_second: Points,
    after_first: Points,
    after_second: Points,
    space_before: Space,
    space_after: Space,
    own: int,
    control: int,
    repeats: int = 200,
    seed: int = 0,
    controls: FourViews | None = None,
) -> FalseAlarms:
    """How often :func:`audit` says "visibly forgotten" of images that nobody asked to forget.

    ``repeats`` times, ``own`` images are drawn at random for an owner and ``control`` others as control. All
    repeats are tested at once, with the same permutations. They draw from the same images, so that the rate is
    only as certain as ``repeats`` suggests where there are many more images than an audit takes. Without control, a
    mean drop of all the images given, be it by chance, is in every audit.

    Args:
        before_first, before_second, after_first, after_second, space_before, space_after: as in :func:`audit`,
            of images that were never asked to be forgotten.
        own: images of an owner.
        control: control images; 0 is the audit without control.
        repeats: audits.
        seed: of the draws and permutations.
        controls: the same four of other images that controls are drawn from, such as test images where owners
            draw from training images; None: from the same images as owners.

    Raises:
        HacoreError: as :func:`audit`, if there are not enough images, or no repeats.
    """
    if repeats < 1:
        raise HacoreError(f"{repeats} audits have no rate of false alarms; use at least one repeat")
    _check_count(own, "own")
    if control:
        _check_count(control, "control")
    pool = _pooled((before_first, before_second, after_first, after_second), controls)
    n, every = len(before_first), len(pool[0])
    available = (n, every - n) if controls is not None else (n - control, n - own)
    if own > available[0] or control > available[1]:
        raise HacoreError(
            f"{own} own and {control} control images cannot be drawn from the {every} that are given; draw fewer"
        )
    stream = generator(seed, "false alarms")
    order = _orders(n, repeats, stream)
    if controls is None:
        chosen = order[: own + control]
    else:
        chosen = torch.cat([order[:own], n + _orders(every - n, repeats, stream)[:control]])
    members = torch.zeros(every, repeats, dtype=torch.bool).scatter_(0, chosen, True)
    parts = _standardised(pool, (space_before, space_after), members)
    drop = parts.drop.gather(0, chosen)
    if control:
        p_values = permutation_p_values(drop[:own], drop[own:], seed)
    else:
        p_values = sign_flip_p_values(drop - parts.own_mismatched.gather(0, chosen), seed)
    alarms = int((p_values <= SIGNIFICANT).sum())
    return FalseAlarms(100 * alarms / repeats, alarms, repeats)


def permutation_p_values(
    own: Float[Tensor, "n audits"],
    control: Float[Tensor, "m audits"],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Float[Tensor, "audits"]:
    r"""One-sided p-values that the mean of ``own`` is above that of ``control`` by chance, a column per audit.

    .. math:: p = \frac{1 + \#\{\text{permutations with a difference at least as large}\}}{1 + \text{permutations}}

    All permutations, the same for every column, are one matrix product with the sums of those that are called own.
    """
    n, values = len(own), torch.cat([wide(own), wide(control)])
    stream = generator(seed, "audit", "permutations")
    # The total of both groups is fixed, so that differences of means are ordered as sums of the own group are.
    as_large = torch.zeros(values.shape[1], dtype=torch.long)
    for count in _portions(permutations):
        ranks = torch.rand(count, len(values), generator=stream, dtype=torch.float64)
        called_own = (ranks <= ranks.kthvalue(n, dim=1, keepdim=True).values).double()
        as_large += _at_least(called_own @ values, values[:n].sum(0), values)
    return (1 + as_large).double() / (1 + permutations)


def sign_flip_p_values(
    drops: Float[Tensor, "n audits"], seed: int = 0, permutations: int = PERMUTATIONS
) -> Float[Tensor, "audits"]:
    """One-sided p-values that the mean of ``drops`` is above 0 by chance, if each may as well be its negative.

    As :func:`permutation_p_values`, with random signs for permutations.
    """
    values = wide(drops)
    stream = generator(seed, "audit", "signs")
    as_large = torch.zeros(values.shape[1], dtype=torch.long)
    for count in _portions(permutations):
        signs = 2 * torch.randint(2, (count, len(values)), generator=stream).double() - 1
        as_large += _at_least(signs @ values, values.sum(0), values)
    return (1 + as_large).double() / (1 + permutations)


def _at_least(sums: Tensor, observed: Tensor, values: Tensor) -> Tensor:
    # The same images summed in another order differ by rounding, which must not decide.
    return (sums >= observed - 1e-12 * values.abs().sum(0)).sum(0)


def _portions(permutations: int) -> list[int]:
    """Bounds memory: at most 1,000 permutations at a time."""
    full, rest = divmod(permutations, 1000)
    return [1000] * full + [rest] * (rest > 0)


def _orders(n: int, repeats: int, stream: torch.Generator) -> Int[Tensor, "n audits"]:
    """A random order of n images in each column."""
    return torch.rand(n, repeats, generator=stream, dtype=torch.float64).argsort(0)


def _interval(means: Float[Tensor, "resamples"], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def _standardised(
    pool: list[Tensor], spaces: tuple[Space, Space], members: Bool[Tensor, "n audits"]
) -> _Parts:
    """Drops in standard deviations of the mismatched pairs among the ``members`` of each audit (column)."""
    (true_b, drop_b, row_b), (true_a, drop_a, row_a) = (
        _in_deviations(first, second, space, members)
        for first, second, space in zip(pool[::2], pool[1::2], spaces, strict=True)
    )
    return _Parts(true_b, true_a, drop_b - drop_a, row_b - row_a)


def _in_deviations(
    first: Tensor, second: Tensor, space: Space, members: Bool[Tensor, "n audits"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n audits"], Float[Tensor, "n audits"]]:
    """Similarities of true pairs, plain and standardised, and the standardised mean of each row's mismatched pairs."""
    weight, size = members.double(), members.double().sum(0)
    with torch.no_grad():
        true = wide(space.paired_similarity(first, second))
        # Squares are taken about some of the mismatched pairs: about 0, those of large similarities would cancel.
        near = wide(space.paired_similarity(first, second.roll(1, 0))).mean()
        rows, squares = [], torch.zeros(len(size)).double()
        for some in torch.arange(len(first)).split(ROWS):
            similar = wide(space.similarity(first[some.to(first.device)], second))
            similar[torch.arange(len(some)), some] = 0
            rows.append(similar @ weight)
            away = (similar - near).square()
            away[torch.arange(len(some)), some] = 0
            squares += (weight[some] * (away @ weight)).sum(0)
    sums, pairs = torch.cat(rows), size * (size - 1)
    mean = (weight * sums).sum(0) / pairs
    deviation = (squares / pairs - (mean - near).square()).clamp(min=0).sqrt()
    if (deviation <= 1e-6 * mean.abs().clamp(min=1e-30)).any():
        raise HacoreError(
            "all mismatched pairs are equally similar: the service answers the same for every image, and no "
            "drop can be measured against that; send other images or ask the service"
        )
    return true, (true[:, None] - mean) / deviation, (sums / (size - 1) - mean) / deviation


def _pooled(own: FourViews, control: FourViews | None) -> list[Tensor]:
    """The four sets of points, own images first and then control ones; raises where they do not fit."""
    sets = [("own", own)] if control is None else [("own", own), ("control", control)]
    for name, four in sets:
        for points in four:
            if points.ndim != 2 or not points.is_floating_point():
                raise HacoreError(
                    f"embeddings of the {name} images must be floats of shape (n, d), got {tuple(points.shape)}; "
                    "give one row per image"
                )
        if len({len(points) for points in four}) > 1:
            counts = ", ".join(str(len(points)) for points in four)
            raise HacoreError(
                f"there are {counts} {name} images in the views before and after; send the same images each time"
            )
        _check_count(len(four[0]), name)
        for when, first, second in (("before", four[0], four[1]), ("after", four[2], four[3])):
            if first.shape[1] != second.shape[1]:
                raise HacoreError(
                    f"the two views {when} have {first.shape[1]} and {second.shape[1]} dimensions; both views "
                    "must come from the same service, first both before and then both after"
                )
            if not (first.isfinite().all() and second.isfinite().all()):
                raise HacoreError(
                    f"embeddings of the {name} images {when} hold NaN or infinite numbers; ask the service again"
                )
            if torch.equal(first, second):
                raise HacoreError(
                    f"both views {when} of the {name} images are identical, so that they agree whatever the service "
                    "knows; send two different augmented views of each image"
                )
    if control is None:
        return list(own)
    for mine, theirs in zip(own, control, strict=True):
        if mine.shape[1] != theirs.shape[1]:
            raise HacoreError(
                f"own images have embeddings of {mine.shape[1]} dimensions and control ones of {theirs.shape[1]}; "
                "ask the same service"
            )
    return [torch.cat([mine, theirs]) for mine, theirs in zip(own, control, strict=True)]


def _check_count(n: int, name: str) -> None:
    if n < FEWEST:
        raise HacoreError(
            f"{n} {name} images are too few: with fewer than {FEWEST}, neither the permutations nor the bootstrap "
            f"can tell a drop from chance; use at least {FEWEST}, better 100"
        )
