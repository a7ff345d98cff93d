"""A run small enough for a test: 500 digits, ten short epochs, real code."""

from dataclasses import replace

from hacore.experiments import Run


def tiny_run(space="euclidean", **fields):
    """A run on 500 digits; keyword arguments are fields of Run."""
    run = Run(space=space, **fields)
    settings = run.resolved()
    training = replace(settings.training, batch_size=32, loop=replace(settings.training.loop, epochs=10))
    unlearning = settings.unlearning
    if unlearning.name == "contrastive-unlearning":
        # Few forget images make few steps an epoch.
        unlearning = replace(unlearning, epochs=60)
    settings = replace(settings, unlearning=unlearning, train_images=500, test_images=100, training=training)
    return replace(run, settings=settings)
