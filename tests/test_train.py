"""The loop, its checkpoints and its refusals. Batches are tiny: nothing here needs a data set."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from torch import nn

from hacore import train
from hacore.encoders import Conv
from hacore.errors import HacoreError
from hacore.train import TrainConfig, checkpoint, fit, lr_factor, optimizers, save_model
from hacore.train.loop import _Watch


class Batch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


class Toy:
    """Two linearly separable classes; the order depends on the epoch alone."""

    def __init__(self, count=48, size=8, seed=0, claim=None):
        stream = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 1, 2, 2, generator=stream)
        self.labels = (self.images.flatten(1).sum(1) > 0).long()
        self.size, self.claim = size, claim

    def __len__(self):
        return self.claim or len(self.labels) // self.size

    def epoch(self, epoch, skip=0):
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(self.size)[skip:]:
            yield Batch(self.images[index], self.labels[index])


class Net(nn.Module):
    """Everything that carries state: batch normalisation, dropout, a matrix for Muon, a scalar."""

    def __init__(self, seed=0, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            Conv(1, width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * width, 2),
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.config = {"width": width}

    def forward(self, images):
        return self.scale * self.layers(images)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch.images), batch.labels)


def never(model, batch):
    raise AssertionError("a complete training takes no step")


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


QUICK = TrainConfig(epochs=2, lr=0.1)


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("HACORE_DEVICE", "cpu")


# Settings


@pytest.mark.parametrize("total", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("config", "reference"),
    [
        ({"schedule": "cosine"}, lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n)),
        ({"schedule": "linear"}, lambda o, n: torch.optim.lr_scheduler.LinearLR(o, 1, 0, n)),
        ({"schedule": "constant"}, lambda o, n: torch.optim.lr_scheduler.ConstantLR(o, 1)),
    ],
)
def test_schedules_agree_with_torch(config, reference, total):
    assert rates(config, total) == pytest.approx(torch_rates(reference, total))


def test_one_cycle_agrees_with_torch():
    def reference(o, n):
        return torch.optim.lr_scheduler.OneCycleLR(o, 1.0, total_steps=n, cycle_momentum=False)

    assert rates({"schedule": "one-cycle"}, 100) == pytest.approx(torch_rates(reference, 100))
    for total in (1, 2, 3, 4):  # too short for torch's
        assert all(0 < rate <= 1 for rate in rates({"schedule": "one-cycle"}, total))


def rates(config, total):
    return [lr_factor(TrainConfig(**config), step, total) for step in range(total)]


def torch_rates(reference, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, seen = reference(optimizer, total), []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_warm_up_rises_linearly_to_the_highest_rate():
    config = TrainConfig(schedule="cosine", warmup=0.1)
    assert [lr_factor(config, step, 40) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("name", train.OPTIMIZERS)
def test_every_parameter_has_one_optimiser_and_only_weights_decay(name):
    net = Net()
    groups = [
        g for o in optimizers(net, TrainConfig(optimizer=name, weight_decay=0.5)) for g in o.param_groups
    ]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(map(id, net.parameters()))
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    weights = {id(net.layers[5].weight)} | (
        {id(net.layers[0].weight)} if not name.startswith("muon") else set()
    )
    assert decayed == weights


def test_muon_moves_matrices_by_the_rate_in_spectral_norm_at_fixed_scale():
    net = Net(width=8)
    fit(net, Toy(), cross_entropy, TrainConfig(epochs=1, optimizer="muon", muon_lr=0.2, schedule="constant"))
    weight = net.layers[0].weight.detach()
    before = weight / weight.norm() * 8**0.5
    (muon, _), batch = optimizers(net, TrainConfig(optimizer="muon", muon_lr=0.2)), next(Toy().epoch(0))
    cross_entropy(net, batch).backward()
    muon.step()
    # Newton-Schulz leaves singular values of about 0.7 to 1.2 of the rate.
    assert 0.1 < torch.linalg.matrix_norm(net.layers[0].weight.detach() - before, ord=2) < 0.3


@pytest.mark.parametrize(("name", "rest"), [("muon", torch.optim.SGD), ("muon-adamw", torch.optim.AdamW)])
def test_muon_leaves_the_rest_to_the_optimiser_its_name_says(name, rest):
    muon, other = optimizers(Net(), TrainConfig(optimizer=name))
    assert isinstance(muon, torch.optim.Muon)
    assert type(other) is rest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimizer": "lion"}, "no optimizer 'lion'; choose one of sgd, adamw, muon, muon-adamw"),
        ({"schedule": "step"}, "no schedule 'step'"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"schedule": "one-cycle", "warmup": 0.1}, "its own warm-up"),
        ({"optimizer": "muon", "precision": "fp16"}, "use precision bf16"),
        ({"optimizer": "muon-adamw", "precision": "fp16"}, "use precision bf16"),
    ],
)
def test_settings_are_checked(change, says):
    with pytest.raises(HacoreError, match=says):
        TrainConfig(**change)


# The loop


@pytest.mark.parametrize("optimizer", train.OPTIMIZERS)
@pytest.mark.parametrize("precision", ["no", "bf16"])  # in one process, in turn
def test_training_learns_and_says_what_it_cost(optimizer, precision):
    net, data = Net(width=16), Toy()
    config = TrainConfig(epochs=12, lr=0.02, optimizer=optimizer, precision=precision, checkpoint_every=5)
    done = fit(net, data, cross_entropy, config)
    assert not net.training
    assert (net(data.images).argmax(1) == data.labels).float().mean() > 0.9
    assert (done.steps, done.stopped, len(done.history)) == (72, False, 12)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert [entry["epoch"] for entry in done.history] == list(range(1, 13))
    assert done.images_per_second == pytest.approx(12 * 48 / done.seconds)
    assert done.peak_memory_bytes > 10**7
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_autocast_covers_what_the_loss_calls_besides_forward():
    seen = set()

    def loss(model, batch):
        seen.add(model.layers[5](torch.ones(1, 16)).dtype)
        return cross_entropy(model, batch)

    fit(Net(), Toy(), loss, replace(QUICK, precision="bf16"))
    fit(Net(), Toy(), loss, QUICK)
    assert seen == {torch.bfloat16, torch.float32}


def test_history_holds_epoch_means_of_named_parts():
    def loss(model, batch):
        ce = cross_entropy(model, batch)
        return ce + 1, {"ce": ce, "one": torch.ones(())}

    for entry in fit(Net(), Toy(), loss, QUICK).history:
        assert entry["one"] == 1
        assert entry["loss"] == pytest.approx(entry["ce"] + 1)


def test_stopping_rule_is_asked_after_every_step_and_ends_training(tmp_path):
    asked = []

    def stop(model, step):
        asked.append(step)
        model.eval()  # as a rule that measures accuracy does
        torch.rand(1)
        return step == 9

    net, twin = Net(), Net()
    done = fit(net, Toy(), cross_entropy, QUICK, stop=stop, checkpoint=tmp_path)
    assert (done.steps, done.stopped, asked) == (9, True, list(range(1, 10)))
    assert [entry["epoch"] for entry in done.history] == [1, 2]
    fit(twin, Toy(), cross_entropy, QUICK, stop=lambda model, step: step == 9)
    assert same(net, twin)  # what the rule does to mode and generators changes nothing
    assert fit(Net(), Toy(), never, QUICK, stop=stop, checkpoint=tmp_path) == done


def test_frozen_normalisation_keeps_its_statistics():
    net = Net()
    mean = net.layers[1].running_mean.clone()
    fit(net, Toy(), cross_entropy, replace(QUICK, freeze_norm=True))
    assert torch.equal(net.layers[1].running_mean, mean)
    fit(net, Toy(), cross_entropy, QUICK)
    assert not torch.equal(net.layers[1].running_mean, mean)


def test_clip_norm_bounds_the_step():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    config = TrainConfig(epochs=1, lr=1.0, momentum=0.0, clip_norm=1e-3, schedule="constant")
    fit(net, Toy(size=48), cross_entropy, config)
    moved = torch.cat([(p - b).flatten() for p, b in zip(net.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_same_seed_same_weights_other_seed_others():
    nets = [Net(), Net(), Net()]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        fit(net, Toy(), cross_entropy, replace(QUICK, seed=seed))
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])  # dropout


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit(Net(), Toy(count=4), cross_entropy, QUICK), "no batches"),
        (lambda: fit(Net(), Toy(claim=7), cross_entropy, QUICK), "does not have the 7 batches"),
        (lambda: fit(Net(), Toy(claim=5), cross_entropy, QUICK), "does not have the 5 batches"),
        (lambda: fit(Net(), Toy(), lambda m, b: m(b.images), QUICK), "scalar tensor"),
        (lambda: fit(Net(), Toy(), lambda m, b: torch.ones(()), QUICK), "depends on the model"),
        (lambda: fit(Net(), Toy(), cross_entropy, replace(QUICK, precision="fp16")), "fp16 needs a GPU"),
        (lambda: fit(nn.Flatten(), Toy(), cross_entropy, QUICK), "no trainable parameter"),
        (
            lambda: fit(nn.Linear(4, 2), Toy(), cross_entropy, replace(QUICK, optimizer="muon")),
            "found no trainable",
        ),
        (lambda: train.seed_everything(-1), "seed"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call, says):
    with pytest.raises(HacoreError, match=says):
        call()


def test_device_is_the_one_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.device() == torch.device("cpu")  # although there is a GPU
    fit(Net(), Toy(), cross_entropy, replace(QUICK, epochs=1))
    monkeypatch.setenv("HACORE_DEVICE", "auto")
    assert train.device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, says in (("cuda", "lacks"), ("tpu", "set it to auto, cuda, mps, cpu")):
        monkeypatch.setenv("HACORE_DEVICE", name)
        with pytest.raises(HacoreError, match=says):
            train.device()


def test_progress_bar_goes_to_stderr_unless_quiet(capsys, monkeypatch):
    fit(Net(), Toy(), cross_entropy, QUICK, method="relabel", progress=True)
    shown = capsys.readouterr()
    assert "relabel: 100%" in shown.err
    assert "12/12" in shown.err
    assert shown.out == ""
    for terminal, ci in ((False, ""), (True, "1")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("CI", ci)
        assert train.quiet()
        fit(Net(), Toy(), cross_entropy, QUICK)
        assert capsys.readouterr().err == ""
    monkeypatch.setenv("CI", "")
    assert not train.quiet()


# Divergence


def poisoned(step, how):
    """Cross-entropy that goes wrong at one step."""
    seen = iter(range(1, 1000))

    def loss(model, batch):
        value, bad = cross_entropy(model, batch), next(seen) == step
        if how == "gradient":  # finite value, infinite slope
            return value + (model.scale - model.scale.detach()).clamp(min=0).sqrt() if bad else value
        part = value * float("nan") if bad else value
        return (value + part, {"push": part}) if how == "part" else part

    return loss


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("value", "step 9 of forget: the loss is not finite"),
        ("part", "step 9 of forget: the loss 'push' is not finite"),
        ("gradient", "step 9 of forget: the gradient of 'scale' is not finite"),
    ],
)
def test_divergence_stops_before_the_weights_and_keeps_the_last_checkpoint(tmp_path, how, says):
    net, good = Net(), Net()
    fit(good, Toy(), cross_entropy, QUICK, stop=lambda model, step: step == 8)
    config = replace(QUICK, checkpoint_every=4)
    with pytest.raises(HacoreError, match=says) as error:
        fit(net, Toy(), poisoned(9, how), config, method="forget", checkpoint=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000008"]
    if how != "part":
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), good.parameters(), strict=True))


def test_weights_that_overflow_are_never_kept(tmp_path):
    net = Net()
    with torch.no_grad():
        net.scale.fill_(3e38)

    with pytest.raises(HacoreError, match="step 1 of train: the tensor 'scale' is not finite"):
        fit(
            net,
            Toy(size=48),
            lambda model, _: -model.scale,
            TrainConfig(epochs=1, lr=1e38),
            checkpoint=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_late_look_names_the_first_step_and_tensor():
    """On a GPU the numbers are looked at every 50 steps; what is reported is where it began."""
    weight = nn.Parameter(torch.ones(2))
    watch, one, nan = (
        _Watch({"weight": weight}, Accelerator(cpu=True), "m"),
        torch.ones(()),
        torch.tensor(torch.nan),
    )
    for step, (push, total) in enumerate([(one, one), (one, one), (nan, nan), (nan, nan)], start=1):
        weight.grad = torch.tensor([1.0, torch.inf if step >= 3 else 1.0])
        watch.note(step, {"push": push, "loss": total})
    with pytest.raises(HacoreError, match="step 3 of m: the loss 'push' is not finite; help"):
        watch.look("help")
    with pytest.raises(HacoreError, match="same named parts"):
        watch.note(5, {"loss": one})


# Checkpoints


def train_to(folder, seed=0, **change):
    net = Net(seed)
    config = replace(TrainConfig(epochs=3, lr=0.1, checkpoint_every=4), **change)
    return net, fit(net, Toy(), cross_entropy, config, checkpoint=folder)


def interrupted(folder, at, net=None, data=None, method="train", **change):
    """Train until the loss is asked for step ``at``."""
    seen = iter(range(1, 1000))

    def loss(model, batch):
        if next(seen) == at:
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    config = replace(TrainConfig(epochs=3, lr=0.1, checkpoint_every=4), **change)
    with pytest.raises(KeyboardInterrupt):
        fit(net or Net(), data or Toy(), loss, config, method=method, checkpoint=folder)


@pytest.mark.parametrize("at", [1, 4, 5, 8, 13, 18])
def test_interrupted_training_ends_as_if_it_had_not_been(tmp_path, at):
    whole, cost = train_to(tmp_path / "whole")
    interrupted(tmp_path / "parts", at)
    net, again = train_to(tmp_path / "parts")
    assert same(net, whole)
    assert (again.history, again.steps) == (cost.history, cost.steps)
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["step-00000018"]


def test_complete_training_is_read_back_without_a_step(tmp_path):
    whole, cost = train_to(tmp_path)
    net = Net()
    config = TrainConfig(epochs=3, lr=0.1, checkpoint_every=1)  # how often does not matter
    assert fit(net, Toy(), never, config, checkpoint=tmp_path) == cost
    assert same(net, whole)
    assert not net.training


VICTIM = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_train import Net, Toy, cross_entropy, TrainConfig, fit, save_model

folder, random = Path(sys.argv[2]), random.Random(0)
fit(Net(), Toy(), cross_entropy, TrainConfig(epochs=1, optimizer="adamw"))  # late imports, before any clock
for optimizer, schedule in (("sgd", "one-cycle"), ("adamw", "cosine"), ("muon", "linear"), ("muon-adamw", "cosine")):
    config = TrainConfig(epochs=40, lr=0.05, optimizer=optimizer, schedule=schedule, weight_decay=1e-3,
                         checkpoint_every=5, seed=3)

    def run(name):
        net = Net()
        fit(net, Toy(), cross_entropy, config, checkpoint=folder / f"{optimizer}-{name}")
        save_model(folder / f"{optimizer}-{name}.safetensors", net)

    began = time.monotonic()
    run("whole")
    seconds = time.monotonic() - began
    kills = resumed = 0
    for attempt in range(8):
        child = os.fork()
        if child == 0:
            run("killed")
            os._exit(0)
        if attempt < 7:
            time.sleep(random.uniform(0.02, 0.25) * seconds)
            resumed += any((folder / f"{optimizer}-killed").glob("step-*"))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
    assert status == 0, status  # the last was left alone
    print(optimizer, kills, resumed)
"""


def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    """SIGKILL of real processes; forked from one that has imported torch, which takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, os.path.dirname(__file__), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["sgd", "adamw", "muon", "muon-adamw"]
    for optimizer, kills, resumed in lines:
        assert int(kills) >= 3
        assert int(resumed) >= 2
        killed, whole = (
            safetensors.torch.load_file(tmp_path / f"{optimizer}-{how}.safetensors")
            for how in ("killed", "whole")
        )
        assert all(torch.equal(killed[name], whole[name]) for name in whole)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "says"), [(truncate, "truncated or damaged"), (os.remove, "cannot read"), (flip, "damaged")]
)
def test_damaged_checkpoint_is_named(tmp_path, name, damage, says):
    interrupted(tmp_path, 6)
    damage(tmp_path / "step-00000004" / name)
    with pytest.raises(HacoreError, match=says) as error:
        train_to(tmp_path)
    assert name in str(error.value)
    assert "step-00000004" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"), [('"step": 4', '"step": 5'), ("{", "["), ('"format": 1', '"format": 0')]
)
def test_edited_state_is_refused(tmp_path, old, new):
    interrupted(tmp_path, 6)
    path = tmp_path / "step-00000004" / "state.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(HacoreError, match=r"state\.json is truncated or damaged"):
        train_to(tmp_path)


def test_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    interrupted(tmp_path, 6)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(HacoreError, match="another version"):
        train_to(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.2}, "its lr is 0.1, now 0.2"),
        ({"epochs": 4, "optimizer": "adamw"}, "its epochs is 3, now 4; its optimizer is sgd, now adamw"),
        ({"method": "relabel"}, "its method is train, now relabel"),
        ({"net": Net(width=5)}, r"its model has other shapes of layers.0.weight \(\(4, 9\), not \(5, 9\)\)"),
        ({"net": Net(seed=1)}, "its initial weights are others"),
        ({"data": Toy(seed=1)}, "its data are others"),
    ],
)
def test_checkpoint_of_another_run_is_refused(tmp_path, change, says):
    interrupted(tmp_path, 6)
    with pytest.raises(HacoreError, match=says):
        interrupted(tmp_path, 6, **change)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_leftovers_of_a_kill_are_swept_and_never_used(tmp_path):
    interrupted(tmp_path, 6)
    (tmp_path / ".step-00000008.abc.part").mkdir()
    (tmp_path / ".step-00000008.abc.part" / "model.safetensors").write_bytes(b"half")
    whole, _ = train_to(None)
    net, _ = train_to(tmp_path)
    assert same(net, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000018"]


@pytest.mark.parametrize("write", ["checkpoint", "save_model"])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, write):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    net = Net()
    if write == "checkpoint":
        interrupted(tmp_path, 6)
    else:
        save_model(tmp_path / "net", net)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HacoreError, match=r"No space left on device; free some space"):
        train_to(tmp_path) if write == "checkpoint" else save_model(tmp_path / "net", net)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_write_that_the_system_cuts_short_is_refused(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(HacoreError, match="cannot write"):
            train_to(tmp_path / "run")
        with pytest.raises(HacoreError, match="cannot write"):
            save_model(tmp_path / "net", Net(width=32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in tmp_path.rglob("*")] == ["run"]


# Models on disk


def test_saved_model_comes_back_exactly(tmp_path):
    net, other = Net(seed=1), Net(seed=2)
    save_model(tmp_path / "a" / "net.safetensors", net)
    assert train.load_model_state(tmp_path / "a" / "net.safetensors", other) == {"width": 4}
    assert same(net, other)


def plain(path):
    safetensors.torch.save_file({"x": torch.ones(1)}, path)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda path: None, "cannot read .*net.*No such file"),
        (truncate, "truncated or damaged"),
        (lambda path: path.write_bytes(b"text"), "truncated or damaged"),
        (plain, "was not written by save_model"),
        (
            lambda path: save_model(path, Net(width=5)),
            r"has other shapes of layers.0.weight \(\(5, 9\), not \(4, 9\)\)",
        ),
        (
            lambda path: save_model(path, nn.Sequential(Net())),
            "lacks scale, .* and 6 more and also holds 0.layers.0.weight",
        ),
    ],
)
def test_unusable_model_file_is_refused(tmp_path, prepare, says):
    path, net, fresh = tmp_path / "net", Net(), Net()
    if prepare is truncate:
        save_model(path, net)
    prepare(path)
    with pytest.raises(HacoreError, match=says) as error:
        train.load_model_state(path, net)
    assert len(str(error.value)) < 600
    assert same(net, fresh)


def test_tied_weights_are_saved(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return net

    net, other = tied(), tied()
    save_model(tmp_path / "net", net)
    train.load_model_state(tmp_path / "net", other)
    assert same(net, other)


# Several processes


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_train import Toy, cross_entropy, TrainConfig, fit, save_model, nn

torch.manual_seed(0)
net = nn.Module()
net.used = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
net.left_out = nn.Linear(3, 3)
loss = lambda model, batch: cross_entropy(model.used, batch)
folder = Path(sys.argv[2])
# 45 images in batches of 11 and then one: shares of 6 and 5, and a batch too small to share.
data = Toy(count=45, size=11, claim=5)
config = TrainConfig(epochs=3, lr=0.1, clip_norm=1.0, checkpoint_every=2)
done = fit(net, data, loss, config, checkpoint=folder / "run", stop=lambda model, step: step == 14)
save_model(folder / f"{sys.argv[3]}.safetensors", net, {"loss": [e["loss"] for e in done.history]})
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(folder, name, **world):
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(WORKER),
                os.path.dirname(__file__),
                str(tmp_path / folder),
                name,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", **world},
            stderr=subprocess.PIPE,
            text=True,
        )

    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [start("two", str(rank), RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
    running.append(start("one", "0"))
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
            process.communicate()
    paths = [
        tmp_path / "one" / "0.safetensors",
        *(tmp_path / "two" / f"{rank}.safetensors" for rank in (0, 1)),
    ]
    one, first, second = (safetensors.torch.load_file(path) for path in paths)
    for name in one:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], one[name], rtol=1e-5, atol=1e-6)
    assert [p.name for p in (tmp_path / "two" / "run").iterdir()] == ["step-00000014"]
    losses = [
        json.loads(checkpoint._unpack(path.read_bytes(), path, "")[0]["config"])["loss"] for path in paths
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


class Images:
    """Two batches an epoch of four images with three pixels."""

    def __len__(self):
        return 2

    def epoch(self, epoch, skip=0):
        yield from list(torch.ones(2, 4, 3))[skip:]


def test_flops_are_those_of_the_matrix_products():
    # Forward and the weight's gradient, 2 * 4 * 3 * 5 each; the images need no gradient. Four steps.
    done = fit(nn.Linear(3, 5), Images(), lambda model, x: model(x).square().mean(), TrainConfig(epochs=2))
    assert done.flops == 4 * 2 * (2 * 4 * 3 * 5)
