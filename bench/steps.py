"""Steps of models of images and texts: MERU's beside CLIP's with the same encoders, in training and unlearning."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hacore.data import Batches, Captioned, PairedBatches, Reading, Split, forgotten_nodes
from hacore.data.world import world
from hacore.encoders import TextEncoder, encoder
from hacore.geometry import space
from hacore.models import ImageText
from hacore.unlearning.concepts import AC, HAC, parents_of

ROUNDS = 15
# Encoders, and the pairs of a training step: for drawings, and for CIFAR images at the profile "standard".
SIZES = {"world": 128, "resnet9": 250}


def model(name: str, geometry: str, dataset: Captioned, where: torch.device) -> ImageText:
    """An untrained model: CLIP in Euclidean space, MERU in a hyperbolic one, else the same."""
    torch.manual_seed(0)
    words = dataset.tokenizer
    text = TextEncoder(words.size, words.length, width=64, layers=2, heads=4)
    body = encoder(name, channels=dataset.channels)
    manifold = space(geometry, learnable=True)
    return ImageText(body, manifold, dataset.mean, dataset.std, text, words).to(where).train()


def variants(
    name: str, dataset: Captioned, where: torch.device
) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Losses of one batch on CLIP and on MERU, by what they are, all of the same pairs."""
    split = Split.single_class(dataset, 0)
    parents = parents_of(dataset, forgotten_nodes(dataset, split))
    numbers = torch.arange(len(dataset.train_labels), device=where)
    trained = Batches(dataset.train_images, numbers, split.retain, SIZES[name], seed=0)
    pairs = PairedBatches(
        dataset.train_images, numbers, split.forget, split.retain, SIZES[name] // 2, 1, seed=0
    )
    batch, pair = (next(iter(Reading(source, dataset, 0, split).epoch(0))) for source in (trained, pairs))
    clip, meru = (model(name, geometry, dataset, where) for geometry in ("euclidean", "lorentz"))

    def unlearning(method: AC, one: ImageText) -> Tensor:
        return method.loss(one, pair, parents)[0]

    calibrated = partial(unlearning, AC(), clip)
    return {
        "training": (partial(clip.loss, batch), partial(meru.loss, batch)),
        "AC on either": (calibrated, partial(unlearning, AC(), meru)),
        "HAC over AC": (calibrated, partial(unlearning, HAC(), meru)),
    }


def milliseconds(loss: Callable[[], Tensor]) -> float:
    """One forward and backward pass; waits for the accelerator."""
    start = time.perf_counter()
    value = loss()
    value.backward()
    if value.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def table(where: torch.device) -> None:
    """Time a step of each kind with each encoder, in turns, and print MERU's over CLIP's."""
    dataset = world(2000, 200).to(where)
    print(f"a step's forward + backward, MERU over CLIP with the same encoders, {where}")
    print(f"{'':38} {'ms':>9} {'ratio':>8} {'fastest':>9} {'ratio':>8}")
    for name in SIZES:
        kinds = variants(name, dataset, where)
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for number in range(ROUNDS + 1):
            for kind, (flat, curved) in kinds.items():
                taken = milliseconds(flat), milliseconds(curved)
                if number:  # the first round finds cold caches
                    times[kind].append(taken)
        for kind, measured in times.items():
            (base, own), row = zip(*measured, strict=True), ""
            for summary in (statistics.median, min):
                row += f" {summary(own):9.1f} {summary(own) / summary(base):8.2f}"
            print(f"{f'{kind} ({name}, {SIZES[name]} pairs)':38}{row}")
    print()
