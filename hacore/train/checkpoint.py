"""Models and running trainings on disk: safetensors for tensors, JSON for the rest, whole or not at all."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hacore.errors import HacoreError
from hacore.files import replacing
from hacore.models import ImageModel, from_config

FORMAT = 1  # raise it when what a checkpoint holds changes its meaning
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save_model(path: str | Path, model: nn.Module, config: dict[str, Any] | None = None) -> None:
    """Write a model's weights and configuration to one safetensors file, all of it or nothing.

    Args:
        path: the file; its folder is made where it is missing.
        model: any module; tied weights are stored once for each name.
        config: JSON types that rebuild the untrained model; None takes ``model.config``.

    Raises:
        HacoreError: if the file cannot be written.
    """
    config = getattr(model, "config", {}) if config is None else config
    content = _pack(model.state_dict(), {"config": json.dumps(config)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_model_state(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Load the weights that :func:`save_model` wrote into ``model``; return the configuration beside them.

    Raises:
        HacoreError: if the file is missing or damaged, or holds another model; ``model`` is then as before.
    """
    config, tensors = _read_model(Path(path))
    _load_state(model, tensors, str(path))
    return config


def load_model(path: str | Path) -> ImageModel:
    """Rebuild the classifier, SimCLR or MoCo that :func:`save_model` wrote, in evaluation mode, on the CPU.

    Raises:
        HacoreError: if the file is missing or damaged, or holds no such model.
    """
    config, tensors = _read_model(Path(path))
    model = from_config(config)
    _load_state(model, tensors, str(path))
    return model.eval()


def _read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    metadata, tensors = _unpack(_read(path), path, "copy or train it again")
    if "config" not in metadata:
        raise HacoreError(f"{path} was not written by save_model: it has no configuration; use one that was")
    return json.loads(metadata["config"]), tensors


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    # As bytes, because safetensors' own writer hides the operating system's error. Clones, because it
    # refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, metadata)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HacoreError(f"cannot read {path}: {error.strerror}; check the path") from error


def _unpack(content: bytes, path: Path, remedy: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise HacoreError(f"{path} is truncated or damaged ({error}); {remedy}") from error
    # The format: eight bytes of length, then the header as JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {}), tensors


def layout(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Names and shapes."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _mismatch(ours: Mapping[str, list[int]], theirs: Mapping[str, list[int]]) -> str:
    """What keeps weights of layout ``theirs`` out of a model of layout ``ours``; empty when they fit."""
    kinds = {
        "lacks": [name for name in ours if name not in theirs],
        "also holds": sorted(name for name in theirs if name not in ours),
        "has other shapes of": [
            f"{name} ({tuple(theirs[name])}, not {tuple(ours[name])})"
            for name in ours
            if name in theirs and list(ours[name]) != list(theirs[name])
        ],
    }
    return " and ".join(
        f"{kind} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in kinds.items()
        if names
    )


def _load_state(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    mismatch = _mismatch(layout(model.state_dict()), layout(tensors))
    if mismatch:
        raise HacoreError(
            f"{where} holds another model than this one: it {mismatch}; build the model it was saved from"
        )
    model.load_state_dict(tensors)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and exact values."""
    return hashlib.sha256(_pack(tensors)).hexdigest()


class Checkpoints:
    """The checkpoints of one training in one folder: ``step-00000120/`` is complete once it has that name.

    A checkpoint is written into a hidden folder beside, flushed, renamed, and only then are older
    ones removed: a kill at any moment leaves the last complete one.

    Args:
        folder: made where it is missing.
        run: what must be equal for a checkpoint to belong to this training, as JSON types; lists of
            floats may differ by rounding.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = Path(folder), run

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self.folder.glob("step-*"), key=lambda path: path.name, default=None)

    def save(
        self, step: int, model: nn.Module, optimizers: Iterable[Optimizer], state: dict[str, Any]
    ) -> None:
        """Write the checkpoint of ``step``, then remove older ones.

        Raises:
            HacoreError: if it cannot be written; the last one stays.
        """
        files = {MODEL: _pack(model.state_dict()), OPTIMIZER: _pack(_flatten(optimizers))}
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        state = {"format": FORMAT, "run": self.run, "files": sums, **state}
        state["sha256"] = _checksum(state)
        files[STATE] = json.dumps(state, indent=1).encode()
        final = self.folder / f"step-{step:08d}"
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{final.name}.", suffix=".part"))
            for name, content in files.items():
                with (temporary / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            temporary.chmod(0o755)  # mkdtemp makes folders private to the user
            os.replace(temporary, final)
        except OSError as error:
            raise HacoreError(
                f"cannot write checkpoint {final}: {error.strerror}; free some space or choose another folder"
            ) from error
        finally:
            if temporary is not None and temporary.exists():
                shutil.rmtree(temporary)
        for old in [*self.folder.glob("step-*"), *self.folder.glob(".step-*.part")]:
            if old != final:
                shutil.rmtree(old)

    def restore(self, model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any] | None:
        """Load the newest checkpoint; return its state, or None where there is none.

        Raises:
            HacoreError: if it is damaged, or of another run.
        """
        path = self.latest()
        if path is None:
            return None
        remedy = f"delete {path} to begin again"
        content = _read(path / STATE)
        try:
            state = json.loads(content)
            if state.pop("sha256") != _checksum(state):
                raise ValueError("its checksum does not match")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HacoreError(f"{path / STATE} is truncated or damaged; {remedy}") from error
        if state["format"] != FORMAT:
            raise HacoreError(f"{path} was written by another version of hacore; {remedy}")
        differences = _differences(state["run"], self.run)
        if differences:
            raise HacoreError(
                f"the checkpoint {path} belongs to another run ({differences}); "
                "use another folder, or delete that one to begin again"
            )
        files = {name: _read(path / name) for name in (MODEL, OPTIMIZER)}
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != state["files"][name]:
                raise HacoreError(f"{path / name} is truncated or damaged; {remedy}")
        _load_state(model, _unpack(files[MODEL], path / MODEL, remedy)[1], str(path / MODEL))
        _unflatten(optimizers, _unpack(files[OPTIMIZER], path / OPTIMIZER, remedy)[1])
        return state


def _checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flatten(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Tensor state as ``optimiser/parameter/name``; all other state is in the settings."""
    return {
        f"{number}/{parameter}/{name}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None  # SGD without momentum keeps an empty buffer
    }


def _unflatten(optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        number, parameter, name = key.split("/")
        states[int(number)].setdefault(int(parameter), {})[name] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _differences(theirs: Any, ours: Any, name: str = "") -> str:
    """Where two JSON values differ, the first three places in words; empty when they do not."""
    if name == "model":
        mismatch = _mismatch(ours, theirs)
        return f"its model {mismatch}" if mismatch else ""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        parts = (_differences(theirs.get(key), ours.get(key), key) for key in {**ours, **theirs})
        return "; ".join([part for part in parts if part][:3])
    if name == "first batch":
        same = len(theirs) == len(ours) and all(map(_close, theirs, ours))
        return "" if same else "its data are others"
    if theirs == ours:
        return ""
    return f"its {name} are others" if name == "initial weights" else f"its {name} is {theirs}, now {ours}"


def _close(a: float, b: float) -> bool:
    # Augmentation on a GPU may round differently from run to run.
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-8)
