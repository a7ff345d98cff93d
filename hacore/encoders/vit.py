"""The vision transformer of MERU and, with one more normalisation, of CLIP."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hacore.encoders.attention import ACTIVATIONS, attend, check_transformer
from hacore.encoders.images import Encoder
from hacore.errors import HacoreError

# Width, depth and heads of released MERU models. Its small one has 12 heads, as MoCo v3's (Chen et al., 2021).
SIZES = {"vit-s": (384, 12, 12), "vit-b": (768, 12, 12), "vit-l": (1024, 24, 16)}
POSITIONS = ("sincos", "learned")


class ViT(Encoder):
    """Vision transformer (Dosovitskiy et al., 2021): a class token among the patches of an image.

    Features are the class token's after a last normalisation; there is no batch normalisation. Normalisations
    have eps 1e-5, activations are exact GELU, queries, keys and values have biases. Names, shapes and order of
    the state dict are those below ``visual.`` of released MERU models (Desai et al., 2023; their
    ``image_encoders.py`` builds timm's network with these settings), initial weights are timm's: normal of
    deviation 0.02, biases 0, class token near 0.

    Args:
        name: ``"vit-s"``, ``"vit-b"``, ``"vit-l"`` of :data:`SIZES`, or ``"vit"`` with the three numbers below.
        channels: of the images.
        dim: None or the width: the projection to other numbers belongs to the model.
        width, depth, heads: None takes those of the name.
        patch: side of a patch in pixels.
        size: side of an image in pixels, a multiple of the patch; the encoder takes no others.
        positions: ``"sincos"``, fixed sines and cosines of row and column as MERU has, or ``"learned"`` as CLIP has.
        activation: ``"gelu"``, or ``"quick"`` for OpenAI's weights.
        pre_norm: normalise tokens before the first block, and no bias of patches, as CLIP does.

    Raises:
        HacoreError: if the name is unknown or a number is impossible.
    """

    pos_embed: Tensor

    def __init__(
        self,
        name: str = "vit-s",
        channels: int = 3,
        dim: int | None = None,
        *,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        patch: int = 16,
        size: int = 224,
        positions: str = "sincos",
        activation: str = "gelu",
        pre_norm: bool = False,
    ) -> None:
        if name not in SIZES and (name != "vit" or None in (width, depth, heads)):
            raise HacoreError(
                f"there is no vision transformer {name!r}; choose one of {', '.join(SIZES)}, or vit with "
                "width, depth and heads"
            )
        known = SIZES.get(name, (0, 0, 0))
        width, depth, heads = width or known[0], depth or known[1], heads or known[2]
        check_transformer(width, depth, heads, activation)
        if dim not in (None, width):
            raise HacoreError(f"this vision transformer has {width} features, not {dim}; leave dim out")
        if patch < 1 or size < patch or size % patch or channels < 1:
            raise HacoreError(
                f"images of {channels} channels and side {size} do not fall into patches of side {patch}; "
                "take a multiple of the patch"
            )
        if positions not in POSITIONS or (positions == "sincos" and width % 4):
            raise HacoreError(
                f"positions {positions!r} do not fit width {width}; choose sincos, for multiples of 4, or learned"
            )
        super().__init__(name, channels, width, None, min_size=size)
        self.project = nn.Sequential()  # features as they are: no batch normalisation
        self.width, self.depth, self.heads, self.patch, self.size = width, depth, heads, patch, size
        self.positions, self.activation, self.pre_norm = positions, activation, pre_norm
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if positions == "sincos":
            self.register_buffer("pos_embed", sincos(width, size // patch))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + (size // patch) ** 2, width))
        self.patch_embed = Patches(channels, width, patch, bias=not pre_norm)
        if pre_norm:
            self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if positions == "learned":
            nn.init.normal_(self.pos_embed, std=0.02)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build one like it, as JSON types."""
        names = ("name", "channels", "width", "depth", "heads", "patch", "size", "positions", "activation")
        return {name: getattr(self, name) for name in (*names, "pre_norm")}

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """The class token's features; raises HacoreError for images of another size."""
        if images.shape[2:] != (self.size, self.size):
            raise HacoreError(
                f"encoder {self.name!r} has positions for images of {self.size} x {self.size} pixels, not "
                f"{images.shape[2]} x {images.shape[3]}; resize the images"
            )
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1)
        x = x + self.pos_embed
        if self.pre_norm:
            x = self.norm_pre(x)
        return self.norm(self.blocks(x)[:, 0])


class Patches(nn.Module):
    """Each patch of an image to a token."""

    def __init__(self, channels: int, width: int, patch: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch, bias=bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n patches width"]:
        """Row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and perceptron of four times the width, each after a normalisation and added to its input."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, activation)

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Tokens to tokens."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Attention between all tokens, with timm's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Each token from all."""
        return self.proj(attend(self.qkv(x), self.heads))


class Perceptron(nn.Module):
    """Two layers, four times as wide in between, with timm's names."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Token by token."""
        return self.fc2(self.activation(self.fc1(x)))


def sincos(width: int, grid: int) -> Float[Tensor, "1 tokens {width}"]:
    r"""Positions of the class token, zeros, and of ``grid`` times ``grid`` patches, row by row.

    A patch in row :math:`i` and column :math:`j` has :math:`\sin i\omega, \cos i\omega, \sin j\omega, \cos j\omega`
    with the frequencies :math:`\omega_k = 10000^{-4k/width}`, a quarter of the width each, as in MoCo v3
    (Chen et al., 2021) and MERU.
    """
    frequency = 10000 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    rows, columns = row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency
    patches = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1)
    return torch.cat([torch.zeros(1, width), patches])[None]
