"""A concept world and models of images and texts small enough for a test: 320 drawings, real code.

Drawings are on a paper that tells the shape: a model learns in seconds, and from few, what takes thousands else.
"""

from dataclasses import replace
from functools import cache

import torch

from hacore.data.world import world
from hacore.encoders import TextEncoder, encoder
from hacore.experiments import Run, concept_split
from hacore.geometry import space as make_space
from hacore.models import ImageText
from hacore.train import TrainConfig
from hacore.unlearning import Request, Training, train_on


@cache
def tiny_world():
    """320 training and 160 test drawings, each pale on the squared paper of its shape."""
    data = world(train=320, test=160)
    stream = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 256, (len(data.classes), 3, 4, 4), generator=stream)
    paper = squares.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    def drawn_on(images, labels):
        return ((3 * images.int() + 7 * paper[labels]) // 10).to(torch.uint8)

    return replace(
        data, train_images=drawn_on(data.train_images, data.train_labels),
        test_images=drawn_on(data.test_images, data.test_labels), mean=(), std=(),
    )  # fmt: skip


def tiny_model(space="euclidean", objective=None, dim=12, seed=0, learnable=True):
    """An untrained model for the world; ``space`` is a name."""
    data = tiny_world()
    torch.manual_seed(seed)
    words = data.tokenizer
    return ImageText(
        encoder("world"), make_space(space, 1.0, learnable), data.mean, data.std,
        TextEncoder(words.size, words.length, 32, 1, 2), words, dim, objective=objective,
    )  # fmt: skip


def tiny_request(space="euclidean", concepts=("triangle",), objective=None, epochs=10):
    """A trained model that is asked to forget these concepts."""
    data = tiny_world()
    split = concept_split(data, concepts, 0)
    loop = TrainConfig(epochs=epochs, lr=2e-3, optimizer="adamw", schedule="cosine", warmup=0.05)
    training = Training(loop, batch_size=32)
    everything = torch.cat([split.retain, split.forget]).sort().values

    def fresh(index):
        return tiny_model(space, objective)

    trained = train_on(fresh(everything), data, split, everything, training, "original")
    return Request(trained.model, trained.fit, fresh, data, split, training)


def tiny_concept_run(space="euclidean", **fields):
    """A run that trains for two short epochs; keyword arguments are fields of Run."""
    kind = {"scenario": "concepts", "data": "world", "recipe": "image-text", "lift": "free"}
    run = Run(space=space, **{**kind, "forget": "triangle", "method": "ac", **fields})
    settings = run.resolved()
    training = replace(settings.training, batch_size=64, loop=replace(settings.training.loop, epochs=2))
    settings = replace(
        settings, dim=12, text_width=32, text_layers=1, text_heads=2, train_images=320, test_images=160,
        training=training,
    )  # fmt: skip
    return replace(run, settings=settings)
