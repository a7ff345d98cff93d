"""Released checkpoints, from files you have: MERU, its CLIP, HyCoCLIP and OpenCLIP models, read and written back.

Inside, all weights have the names of MERU's state dict (Desai et al., 2023; their ``models.py``), which are
ours below ``visual.`` and ``textual.``; HyCoCLIP (Pal et al., 2025) has the same. OpenCLIP's and OpenAI's weights
are the same network with other names, a normalisation before the first block, and no statistics of pixels.
"""

import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hacore.data import Tokenizer
from hacore.encoders import TextEncoder, ViT
from hacore.encoders.vit import SIZES, sincos
from hacore.errors import HacoreError
from hacore.files import replacing
from hacore.geometry import Euclidean, Lorentz, Space
from hacore.models.image_text import MAX_LOGIT_SCALE, ImageText

KINDS = ("meru", "clip", "openclip", "openai")
# Heads are no part of a state dict. Most networks have one for each 64 features; MERU's ViT-S (in its own layout)
# and OpenCLIP's ViT-H have not.
HEADS = {("meru", 384): 12, ("clip", 384): 12, ("openclip", 1280): 16}
# What OpenAI's models, and OpenCLIP's after them, subtract from pixels and divide them by.
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# OpenAI's state dicts hold these numbers too, which the shapes say as well.
NUMBERS = ("input_resolution", "context_length", "vocab_size")
MERGES = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")

# How names of MERU's begin, and the same ones of OpenCLIP's.
OPENCLIP = {
    "visual.cls_token": "visual.class_embedding",
    "visual.pos_embed": "visual.positional_embedding",
    "visual.patch_embed.proj.": "visual.conv1.",
    "visual.norm_pre.": "visual.ln_pre.",
    "visual.blocks.": "visual.transformer.resblocks.",
    "visual.norm.": "visual.ln_post.",
    "visual_proj.weight": "visual.proj",
    "textual.token_embed.": "token_embedding.",
    "textual.posit_embed": "positional_embedding",
    "textual.resblocks.": "transformer.resblocks.",
    "textual.ln_final.": "ln_final.",
    "textual_proj.weight": "text_projection",
}
OPENCLIP_BLOCK = {
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".attn.in_proj_",
    ".attn.proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
PROJECTIONS = ("visual_proj.weight", "textual_proj.weight")  # OpenCLIP's are their transposes
# How many dimensions, each of size 1, stand before those that OpenCLIP's have.
TOKENS = {"visual.cls_token": 2, "visual.pos_embed": 1}
NOT_OPENCLIP = ("pixel_mean", "pixel_std", "textual.attn_mask")
SAFE = ".safetensors"
TYPES = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds all of these exactly


def load_released(
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    kind: str | None = None,
    heads: tuple[int, int] | None = None,
    learnable: bool = False,
) -> ImageText:
    r"""The model of a released checkpoint, in evaluation mode, on the CPU, in float32.

    The file is ``torch.save``'s, with the state dict alone or under ``"model"`` or ``"state_dict"``, or
    safetensors; nothing in it is run. A MERU or HyCoCLIP model lives in a Lorentz space of the checkpoint's
    curvature :math:`e^{curv}`, a CLIP model in Euclidean space; pixels are normalised by the checkpoint's own
    statistics, or OpenAI's where it has none.

    Args:
        path: of the file.
        tokenizer: of the model's vocabulary; None looks for CLIP's merges, ``bpe_simple_vocab_16e6.txt.gz`` or
            ``.txt``, beside the file.
        kind: ``"meru"`` (HyCoCLIP's too), ``"clip"`` (MERU's own), ``"openclip"`` or ``"openai"``; None tells by the
            names. Give ``"openai"`` for weights in OpenCLIP's layout that were trained with QuickGELU, as OpenAI's:
            the names do not say so.
        heads: of the image and of the text encoder's attention; None is what released models of their widths have.
        learnable: train the curvature, up to a factor of 10 from the checkpoint's.

    Raises:
        HacoreError: if the file cannot be read or is damaged, would run code, holds another thing, weights that
            are not finite or of wrong shape, or does not go with the tokenizer.
    """
    file = _read(Path(path), kind)
    with torch.device("meta"):
        encoder, text, dim = _build(file, heads)
    layout = _layout(file, encoder, text, dim)
    _check_layout(file, layout, "a complete released model", "give one")
    state = {name: file.ours(name) for name in layout}
    _check_values(file, state)
    tokenizer = tokenizer or _tokenizer_beside(file.path, text.length)
    if tokenizer.size != text.vocabulary:
        raise HacoreError(
            f"the tokenizer has {tokenizer.size} tokens and the model of {path} {text.vocabulary}; "
            "give the one that the model was trained with"
        )
    space: Space = Euclidean()
    if file.kind == "meru":
        space = Lorentz(float(state.pop("curv").double().exp()), learnable)
    mean, std = list(PIXEL_MEAN), list(PIXEL_STD)
    if not file.openclip:
        mean, std = state.pop("pixel_mean").flatten().tolist(), state.pop("pixel_std").flatten().tolist()
    for part, prefix in ((encoder, "visual."), (text, "textual.")):
        names = [name for name in state if name.startswith(prefix)]
        weights = {name.removeprefix(prefix): state.pop(name) for name in names}
        if file.openclip and part is text:
            weights["attn_mask"] = _causal(text.length)
        part.load_state_dict(weights, assign=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # initial weights are drawn, and replaced
        model = ImageText(encoder, space, mean, std, text, tokenizer, dim)
        for name, weight in state.items():
            model.get_parameter(name).copy_(weight)
    return model.eval()


def save_released(model: ImageText, path: str | Path, like: str | Path | None = None) -> None:
    """Write a model in the layout of released checkpoints, all of it or nothing, for the code that reads those.

    Args:
        model: with a :class:`~hacore.encoders.ViT`, in a Lorentz space (MERU) or in Euclidean space (CLIP).
        path: of the file; ``.safetensors`` writes that format, all else ``torch.save``'s.
        like: the checkpoint that the model was loaded from, of the same format: the file has its names in their
            order, its types and whatever else it holds, such as the iteration. An optimiser's state is kept as well,
            and knows nothing of what became of the weights. None writes MERU's layout under ``"model"`` alone.

    Raises:
        HacoreError: if the layout cannot hold the model, weights are not finite, or a file cannot be read or written.
    """
    path = Path(path)
    state, safe = _state(model), path.suffix == SAFE
    content: Any
    metadata: dict[str, str]
    if like is None:
        if isinstance(model.encoder, ViT) and model.encoder.pre_norm:
            raise HacoreError(
                "a model of OpenCLIP's kind is written like its checkpoint; give that file as like"
            )
        content, metadata = state if safe else {"model": state}, {}
    else:
        file = _read(Path(like))
        if (file.path.suffix == SAFE) != safe:
            raise HacoreError(f"{path} and {like} are of different formats; give both the same suffix")
        if file.openclip:
            state = {name: tensor for name, tensor in state.items() if name not in NOT_OPENCLIP}
        _check_layout(file, state, "this model", "give the checkpoint that it was loaded from")
        for name, tensor in state.items():
            old = file.weights[file.key(name)]
            # A number that has not changed stays as it was written, to the last bit.
            if not torch.equal(_number(name, file.ours(name)), tensor):
                file.weights[file.key(name)] = file.theirs(name, tensor).contiguous().to(old.dtype)
        content, metadata = file.content, file.metadata
    if safe:
        packed: Any = safetensors.torch.save(content, metadata)
    else:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        packed = buffer.getbuffer()
    with replacing(path) as temporary:
        temporary.write_bytes(packed)


@dataclass(frozen=True)
class _File:
    """A checkpoint as it was read, and how its names and weights are MERU's."""

    path: Path
    content: Any  # all of it
    weights: dict[str, Any]  # the state dict within
    prefix: str  # what all names begin with
    metadata: dict[str, str]  # remarks of safetensors
    kind: str

    @property
    def openclip(self) -> bool:
        """Whether names are OpenCLIP's, not MERU's."""
        return self.kind in ("openclip", "openai")

    def key(self, name: str) -> str:
        """The file's name of what MERU calls ``name``."""
        if self.openclip:
            block = name.startswith("visual.blocks.")
            ours = next((ours for ours in OPENCLIP if name.startswith(ours)), "")
            name = OPENCLIP.get(ours, "") + name.removeprefix(ours)
            for part, theirs in OPENCLIP_BLOCK.items() if block else ():
                name = name.replace(part, theirs)
        return self.prefix + name

    def theirs(self, name: str, tensor: Tensor) -> Tensor:
        """A weight in the shape that the file has for it."""
        if self.openclip and name in PROJECTIONS:
            return tensor.T
        if self.openclip and name in TOKENS:
            return tensor.flatten(0, TOKENS[name])
        return tensor

    def view(self, name: str) -> Tensor:
        """A weight of the file in our shape."""
        tensor = self.weights[self.key(name)]
        if self.openclip and name in PROJECTIONS:
            return tensor.T
        if self.openclip and name in TOKENS:
            return tensor[(None,) * TOKENS[name]]
        return tensor

    def ours(self, name: str) -> Tensor:
        """A weight of the file in our shape, in float32 and memory of its own."""
        tensor = self.view(name)
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(dtype, copy=True).contiguous()


def _read(path: Path, kind: str | None = None) -> _File:
    if kind is not None and kind not in KINDS:
        raise HacoreError(f"there is no kind {kind!r} of released models; choose one of {', '.join(KINDS)}")
    content, metadata = _unpack(path)
    weights = content
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            weights = content[name]
            break
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise HacoreError(
            f"{path} holds no state dict; give a released MERU, CLIP, HyCoCLIP or OpenCLIP model"
        )
    # As saved by one of several processes.
    prefix = "module." if weights and all(name.startswith("module.") for name in weights) else ""
    names = {name.removeprefix(prefix) for name in weights}
    if "visual.class_embedding" in names:
        found = ("openai",) if names.intersection(NUMBERS) else ("openclip", "openai")
    elif "visual.cls_token" in names:
        found = ("meru",) if names.intersection(("curv", "visual_alpha", "textual_alpha")) else ("clip",)
    else:
        raise HacoreError(
            f"{path} holds no released model: it lacks visual.cls_token (MERU, CLIP, HyCoCLIP) and "
            f"visual.class_embedding (OpenCLIP) and has {_some(sorted(names))}; give a model with a vision transformer"
        )
    if kind is not None and kind not in found:
        raise HacoreError(f"{path} holds a model of kind {found[0]}, not {kind}; leave the kind out")
    return _File(path, content, weights, prefix, metadata, kind or found[0])


def _unpack(path: Path) -> tuple[Any, dict[str, str]]:
    try:
        if path.suffix == SAFE:
            content = path.read_bytes()
            tensors = safetensors.torch.load(content)
            # The format: eight bytes of length, then the header as JSON.
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            return tensors, header.get("__metadata__", {})
        script = False
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                script = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if not script:
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except OSError as error:
        raise HacoreError(f"cannot read {path}: {error.strerror}; check the path") from error
    except Exception as error:  # torch raises whatever the bytes of a damaged file lead it to
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise HacoreError(
                f"{path} holds more than tensors ({code[1]}), which could run code when read, and is refused; "
                "save its state dict alone where it comes from"
            ) from error
        raise HacoreError(f"{path} is truncated, damaged or no checkpoint; fetch it again") from error
    raise HacoreError(
        f"{path} is a TorchScript program, as OpenAI publishes, and is not run; save its state dict once with "
        "torch.save(torch.jit.load(path).state_dict(), other) and give that file"
    )


def _build(file: _File, heads: tuple[int, int] | None) -> tuple[ViT, TextEncoder, int]:
    """Encoders of the sizes that the shapes tell, and the dimension of points."""
    dimensions = {
        "visual.pos_embed": 3, "visual.patch_embed.proj.weight": 4, "visual_proj.weight": 2,
        "textual.posit_embed": 2, "textual.token_embed.weight": 2,
    }  # fmt: skip
    shapes = {}
    for name, number in dimensions.items():
        tensor = file.weights.get(file.key(name))
        if not isinstance(tensor, Tensor):
            raise HacoreError(
                f"{file.path} holds no complete released model: it lacks {file.key(name)}; give one"
            )
        expected = number - TOKENS[name] if file.openclip and name in TOKENS else number
        if tensor.dim() != expected or not tensor.numel():
            raise HacoreError(
                f"{file.path} holds no complete released model: {file.key(name)} has shape {tuple(tensor.shape)}; "
                "give one"
            )
        shapes[name] = file.view(name).shape
    _, tokens, width = shapes["visual.pos_embed"]
    _, channels, patch, _ = shapes["visual.patch_embed.proj.weight"]
    length, text_width = shapes["textual.posit_embed"]
    grid = math.isqrt(tokens - 1)
    depth, layers = (
        # Blocks are counted by their numbers, so that one of which a part is missing is named as incomplete.
        max(1, len({name.removeprefix(stem).split(".")[0] for name in file.weights if name.startswith(stem)}))
        for stem in (file.key("visual.blocks."), file.key("textual.resblocks."))
    )
    chosen = heads or (_heads(file.kind, width), _heads("text", text_width))
    fixed = False
    if not file.openclip and width % 4 == 0 and tokens == 1 + grid**2:
        with torch.device(
            "cpu"
        ):  # MERU's positions are fixed ones; a state dict does not tell but by their values
            fixed = torch.allclose(file.ours("visual.pos_embed"), sincos(width, grid), rtol=0, atol=1e-3)
    activation = "quick" if file.kind == "openai" else "gelu"
    known = {size: name for name, size in SIZES.items()}
    encoder = ViT(
        known.get((width, depth, chosen[0]), "vit"), channels,
        width=width, depth=depth, heads=chosen[0], patch=patch, size=patch * grid,
        positions="sincos" if fixed else "learned", activation=activation, pre_norm=file.openclip,
    )  # fmt: skip
    vocabulary = shapes["textual.token_embed.weight"][0]
    text = TextEncoder(vocabulary, length, text_width, layers, chosen[1], activation)
    return encoder, text, shapes["visual_proj.weight"][0]


def _heads(kind: str, width: int) -> int:
    heads = HEADS.get((kind, width), width // 64)
    if heads < 1 or width % heads:
        raise HacoreError(
            f"how many heads a network of width {width} has cannot be told; give heads=(of images, of texts)"
        )
    return heads


def _layout(file: _File, encoder: ViT, text: TextEncoder, dim: int) -> dict[str, Tensor]:
    """Tensors without values by the names of MERU's state dict, in its order; without those that a kind has not."""
    one, pixel = torch.empty((), device="meta"), torch.empty(encoder.channels, 1, 1, device="meta")
    layout = {"logit_scale": one}
    if file.kind == "meru":
        layout |= {"curv": one, "visual_alpha": one, "textual_alpha": one}
    layout |= {"pixel_mean": pixel, "pixel_std": pixel}
    layout |= {f"visual.{name}": tensor for name, tensor in encoder.state_dict().items()}
    layout |= {f"textual.{name}": tensor for name, tensor in text.state_dict().items()}
    layout["visual_proj.weight"] = torch.empty(dim, encoder.width, device="meta")
    layout["textual_proj.weight"] = torch.empty(dim, text.width, device="meta")
    return {name: w for name, w in layout.items() if not (file.openclip and name in NOT_OPENCLIP)}


def _check_layout(file: _File, layout: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Raise HacoreError unless the file has weights of these names and shapes, and no others."""
    theirs = {file.key(name): file.theirs(name, tensor).shape for name, tensor in layout.items()}
    here = {name: w.shape if isinstance(w, Tensor) else None for name, w in file.weights.items()}
    extras = {file.prefix + name for name in NUMBERS} if file.kind == "openai" else set()
    problems = {
        "lacks": [name for name in theirs if here.get(name) is None],
        "also holds": [name for name in here if name not in theirs and name not in extras],
        "has other shapes of": [
            f"{name} ({tuple(shape)}, not {tuple(theirs[name])})"
            for name, shape in here.items()
            if shape is not None and name in theirs and shape != theirs[name]
        ],
    }
    found = " and ".join(f"{verb} {_some(names)}" for verb, names in problems.items() if names)
    if found:
        raise HacoreError(f"{file.path} does not hold {what}: it {found}; {remedy}")


def _check_values(file: _File, state: Mapping[str, Tensor]) -> None:
    """Raise HacoreError where a weight is not finite or of another type."""
    for name, tensor in state.items():
        key, dtype = file.key(name), file.weights[file.key(name)].dtype
        if name == "textual.attn_mask":
            if dtype != torch.bool or not torch.equal(tensor, _causal(len(tensor))):
                raise HacoreError(
                    f"{key} of {file.path} hides other than later tokens; give a released model"
                )
        elif dtype not in TYPES:
            raise HacoreError(
                f"{key} of {file.path} is of {dtype}; give weights in float32, float16 or bfloat16"
            )
        elif not tensor.isfinite().all():
            raise HacoreError(
                f"{key} of {file.path} holds NaN or infinite weights; give a checkpoint from before"
            )


def _state(model: ImageText) -> dict[str, Tensor]:
    """The weights by the names of MERU's state dict, in its order."""
    flat = isinstance(model.space, Euclidean) and model.space.kind == "cosine"
    problem = ""
    if not isinstance(model.encoder, ViT):
        problem = f"its encoder {model.encoder.name!r} is no vision transformer"
    elif not (flat or isinstance(model.space, Lorentz)):
        problem = f"its space is neither Lorentz nor Euclidean with cosines, but {model.space.name}"
    elif (model.lift.mode, model.lift.scale) != ("free", 1.0):
        problem = "its lift is not free and of scale 1"
    if problem:
        raise HacoreError(f"the layout of released models cannot hold this one: {problem}; use save_model")
    weights = model.state_dict()
    state = {"logit_scale": weights["logit_scale"]}
    if isinstance(model.space, Lorentz):
        state["curv"] = model.space.curv.detach().double().log()
        state |= {name: weights[name] for name in ("visual_alpha", "textual_alpha")}
    state |= {"pixel_mean": weights["mean"], "pixel_std": weights["std"]}
    for ours, theirs in (("encoder.", "visual."), ("text.", "textual.")):
        names = [name for name in weights if name.startswith(ours)]
        state |= {theirs + name.removeprefix(ours): weights[name] for name in names}
    state |= {name: weights[name] for name in PROJECTIONS}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise HacoreError(f"{name} of the model is NaN or infinite, so nothing is written; train it anew")
        number = tensor.float() if name == "curv" else _number(name, tensor)
        state[name] = number.detach().cpu().contiguous()
    return state


def _number(name: str, value: Tensor) -> Tensor:
    """A number of a checkpoint as our model has it: scales are bounded, and the curvature is no logarithm."""
    if name == "curv":
        return value.double().exp().log().float()
    if name in ("visual_alpha", "textual_alpha"):
        return value.clamp(max=0.0)
    return value.clamp(max=MAX_LOGIT_SCALE) if name == "logit_scale" else value


def _causal(length: int) -> Tensor:
    """True where a token does not see another, later one."""
    return torch.ones(length, length).triu(1).bool()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tokenizer_beside(path: Path, length: int) -> Tokenizer:
    for name in MERGES:
        if (path.parent / name).is_file():
            return Tokenizer.clip(path.parent / name, length)
    raise HacoreError(
        f"the model of {path} needs its tokenizer: put CLIP's {MERGES[0]} beside it, "
        "or give Tokenizer.clip(merges_file)"
    )
