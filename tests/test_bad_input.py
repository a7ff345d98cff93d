"""Every bad input ends in one clear sentence, a non-zero status and nothing half-written."""

import errno
import io
import json
import math
import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import tiny_run

from hacore import data, geometry, losses, models, results, train
from hacore.__main__ import main
from hacore.encoders import encoder
from hacore.errors import HacoreError
from hacore.experiments import prepare
from hacore.experiments import run as do
from hacore.unlearning import train_on


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache and a data folder with a small, sound cifar10."""
    monkeypatch.setenv("HACORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HACORE_DATA", str(tmp_path / "data"))
    parquet(tmp_path / "data" / "cifar10")
    return tmp_path


def png(size=32):
    out = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def parquet(folder, image=None, labels=range(10), column="img", label="label"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {column: [{"bytes": image or png(), "path": None}] * len(labels), label: list(labels)}
    for part in ("train", "test"):
        pq.write_table(pa.table(rows), folder / f"{part}-00000-of-00001.parquet")


def cli(*arguments):
    """A case for the command line, after a change to the home folder or the environment."""

    def case(home, monkeypatch):
        return main([str(a).replace("HOME", str(home)) for a in arguments])

    return case


def run(*arguments):
    return cli("run", *arguments, "--results", "HOME/out")


CIFAR = ("single-class", "--data", "cifar10", "--profile", "standard")


def after(change, case):
    def both(home, monkeypatch):
        change(home, monkeypatch)
        return case(home, monkeypatch)

    return both


def setenv(name, value):
    return lambda home, monkeypatch: monkeypatch.setenv(name, value.replace("HOME", str(home)))


def with_files(**arguments):
    return lambda home, monkeypatch: parquet(home / "data" / "cifar10", **arguments)


def truncate(home, monkeypatch):
    path = home / "data" / "cifar10" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])


def full_disk(home, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)


def a_file_for_results(home, monkeypatch):
    (home / "out").write_text("not a folder")


def damaged_record(home, monkeypatch):
    (home / "records").mkdir()
    (home / "records" / "a.json").write_text('{"schema": 1')


def foreign_record(home, monkeypatch):
    (home / "records").mkdir()
    (home / "records" / "a.json").write_text(json.dumps({"schema": 99}))


COMMANDS = {
    "unknown scenario": (run("everything"), "no scenario 'everything'; choose one of single-class"),
    "unknown method": (run("single-class", "--method", "magic"), "no method 'magic'; choose one of original"),
    "unknown space": (run("single-class", "--space", "flat"), "no geometry 'flat'; choose one of euclidean"),
    "unknown data": (run("single-class", "--data", "mnist"), "no data set 'mnist'; choose one of digits"),
    "unknown profile": (run("single-class", "--profile", "huge"), "no profile 'huge'; choose one of quick"),
    "profile without data": (run("single-class", "--data", "cifar10"), "no settings for 'cifar10'"),
    "curvature zero": (run("single-class", "--space", "lorentz", "--curv", 0), "curvature 0.0"),
    "curvature negative": (run("single-class", "--space", "poincare", "--curv", -1), "curvature -1.0"),
    "curvature NaN": (run("single-class", "--space", "lorentz", "--curv", "nan"), "curvature nan"),
    "class that is not there": (run("single-class", "--forget", 99), "cannot be forgotten"),
    "no samples to forget": (run("random-samples", "--forget", 0), "cannot be forgotten"),
    "all samples to forget": (run("random-samples", "--forget", 100000), "cannot be forgotten"),
    "no seeds": (run("single-class", "--seeds", 0), "--seeds is how many seeds"),
    "negative seed": (run("single-class", "--seed", -1), "seed"),
    "unknown device": (after(setenv("HACORE_DEVICE", "tpu"), run("single-class")), "HACORE_DEVICE is 'tpu'"),
    "absent device": (after(setenv("HACORE_DEVICE", "mps"), run("single-class")), "HACORE_DEVICE is 'mps'"),
    "missing data folder": (after(setenv("HACORE_DATA", "HOME/none"), run(*CIFAR)), "HACORE_DATA"),
    "truncated parquet": (after(truncate, run(*CIFAR)), "train-00000-of-00001.parquet"),
    "wrong image column": (after(with_files(column="picture"), run(*CIFAR)), "img"),
    "wrong label column": (after(with_files(label="kind"), run(*CIFAR)), "label"),
    "broken image": (after(with_files(image=b"GIF?"), run(*CIFAR)), "train-00000-of-00001.parquet"),
    "image of another size": (after(with_files(image=png(28)), run(*CIFAR)), "28"),
    "label out of range": (after(with_files(labels=[0, 1, 77]), run(*CIFAR)), "range 0..9"),
    "too few images": (run(*CIFAR), "class"),
    "full disk": (after(full_disk, run("single-class", "--method", "original")), "No space left"),
    "results in a file": (after(a_file_for_results, run("single-class")), "cannot write"),
    "no records": (cli("results", "HOME/none"), "no records in"),
    "damaged record": (after(damaged_record, cli("results", "HOME/records")), "not valid JSON"),
    "foreign record": (after(foreign_record, cli("results", "HOME/records")), "not a hacore record"),
}


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_one_sentence_and_leaves_nothing(home, monkeypatch, capsys, name):
    case, message = COMMANDS[name]
    if name == "absent device":
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert case(home, monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hacore: ")
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err
    assert captured.out == ""
    assert not [path for path in home.rglob("*") if path.name.endswith(".part")], "a temporary file is left"
    assert not list((home / "out").rglob("*.json")), "a record is left"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def classifier(space="euclidean", dim=8, channels=1):
    where = geometry.space(space)
    return models.Classifier(
        encoder("cnn", channels, dim),
        10,
        where,
        (0.5,) * channels,
        (0.5,) * channels,
        lift=models.Lift(where),
    )


def mismatched_checkpoint(tmp_path, digits):
    train.save_model(tmp_path / "model.safetensors", classifier(dim=8))
    train.load_model_state(tmp_path / "model.safetensors", classifier(dim=16))


def checkpoint_of_another_curvature(tmp_path, digits):
    train.save_model(tmp_path / "model.safetensors", classifier("lorentz"))
    model = classifier("lorentz")
    model.space = geometry.Lorentz(2.0)
    train.load_model_state(tmp_path / "model.safetensors", model)


def not_a_checkpoint(tmp_path, digits):
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    train.load_model(tmp_path / "model.safetensors")


def diverging_training(tmp_path, digits):
    settings = tiny_run().resolved()
    loop = train.TrainConfig(epochs=3, lr=1e30, schedule="constant")
    run = tiny_run(method="retrain")
    training = replace(settings.training, loop=loop)
    do(replace(run, settings=replace(settings, training=training)))


def another_run_in_the_checkpoint_folder(tmp_path, digits):
    request = prepare(tiny_run())
    for batch_size in (16, 32):
        training = replace(request.training, batch_size=batch_size)
        everything = request.split.retain
        train_on(
            request.fresh(request.split.retain),
            request.dataset,
            request.split,
            everything,
            training,
            "retrain",
            tmp_path / "run",
        )


CALLS = {
    "NaN images": (
        lambda tmp, d: data.check_images(torch.full((2, 1, 8, 8), math.nan)), "NaN",
    ),
    "images not in [0, 1]": (lambda tmp, d: data.check_images(255 * torch.ones(2, 1, 8, 8)), r"\[0, 1\]"),
    "unknown encoder": (lambda tmp, d: encoder("vgg", 1, 8), "vgg"),
    "images of other channels": (lambda tmp, d: classifier()(torch.zeros(2, 3, 8, 8)), "channels"),
    "empty forget set": (lambda tmp, d: data.Split.classes(d, []), "cannot be forgotten"),
    "overlapping split": (
        lambda tmp, d: replace(
            split := data.Split.single_class(d, 5), retain=torch.cat([split.retain, split.forget]).sort().values
        ),
        "retain|forget|twice|overlap",
    ),
    "unknown superclass": (lambda tmp, d: data.Split.superclass(d, "fish"), "no superclass 'fish'"),
    "label noise of 100 %": (lambda tmp, d: data.Split.samples(d, count=9, label_noise=1.0), "noise"),
    "points of different dimension": (
        lambda tmp, d: geometry.Lorentz().dist(torch.zeros(2, 3), torch.zeros(2, 4)), "last dimension",
    ),
    "infinite curvature": (lambda tmp, d: geometry.Poincare(math.inf), "curvature"),
    "temperature zero": (
        lambda tmp, d: losses.contrastive_unlearning(
            torch.zeros(2, 3), torch.zeros(2).long(), torch.zeros(2, 3), torch.ones(2).long(), geometry.Euclidean(), 0.0
        ),
        "temperature",
    ),
    "mismatched checkpoint": (mismatched_checkpoint, "shape|mis|differ"),
    "checkpoint of another curvature": (checkpoint_of_another_curvature, "curvature"),
    "not a checkpoint": (not_a_checkpoint, "model.safetensors"),
    "diverging training": (diverging_training, "step .* of original: .* not finite"),
    "checkpoint folder of another run": (another_run_in_the_checkpoint_folder, "run"),
    "result that is not finite": (
        lambda tmp, d: results.write({"name": "a", "metrics": {"accuracy": math.inf}}, tmp), "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_raises_one_sentence(tmp_path, digits, name):
    call, message = CALLS[name]
    with pytest.raises(HacoreError, match=message) as caught:
        call(tmp_path, digits)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
