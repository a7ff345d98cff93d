"""The text encoder of CLIP and MERU: tokens (n, length) to features (n, width)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from hacore.encoders.attention import ACTIVATIONS, attend, check_transformer
from hacore.errors import HacoreError


class TextEncoder(nn.Module):
    """A transformer in which each token sees itself and earlier ones; a text's feature is that of its end token.

    Normalisation stands before attention and before the perceptron, with eps 1e-5, and once more at the end;
    the activation is the exact GELU. Since no token sees later ones, what comes after the end has no effect:
    padding is 0 as in MERU and needs no mask. Names, shapes and order of the state dict are those below
    ``textual.`` of released MERU models (Desai et al., 2023; their ``text_encoders.py``), initial weights too:
    normal of deviation 0.02 (tokens), 0.01 (positions), and those of Radford et al. (2021) in the blocks.

    Args:
        vocabulary: how many tokens there are; the largest number is that of the end token.
        length: the most tokens in a text, with start and end.
        width: number of features.
        layers: number of blocks.
        heads: of the attention; they divide the width.
        activation: ``"gelu"``, or ``"quick"`` for OpenAI's weights.

    Raises:
        HacoreError: if a number is impossible.
    """

    attn_mask: Tensor

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_transformer(width, layers, heads, activation)
        if vocabulary < 3 or length < 3:
            raise HacoreError(
                f"a text encoder needs 3 tokens or more, start, end and text, not {vocabulary}, and a context "
                f"of 3 or more, not {length}; give its tokenizer's size and length"
            )
        self.vocabulary, self.length, self.width = vocabulary, length, width
        self.layers, self.heads, self.activation = layers, heads, activation
        self.posit_embed = nn.Parameter(torch.empty(length, width))
        self.register_buffer("attn_mask", torch.ones(length, length).triu(1).bool())  # part of the layout
        self.token_embed = nn.Embedding(vocabulary, width)
        blocks = [Block(width, heads, activation) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)
        self.ln_final = nn.LayerNorm(width)
        nn.init.normal_(self.token_embed.weight, std=0.02)
        nn.init.normal_(self.posit_embed, std=0.01)
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(last.weight, std=(2 * width * layers) ** -0.5)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build one like it, as JSON types."""
        names = ("vocabulary", "length", "width", "layers", "heads", "activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "n width"]:
        """Features of texts; rows may be shorter than the context.

        Raises:
            HacoreError: if rows are longer than the context.
        """
        if not 0 < tokens.shape[1] <= self.length:
            raise HacoreError(
                f"the text encoder reads up to {self.length} tokens, not {tokens.shape[1]}; "
                "build the tokenizer with this length"
            )
        end = tokens.argmax(dim=1)
        if not tokens.is_meta:
            # What comes after the last end is never seen: captions are far shorter than the context.
            tokens = tokens[:, : max(end.tolist(), default=0) + 1]
        x = self.token_embed(tokens) + self.posit_embed[: tokens.shape[1]]
        for block in self.resblocks:
            x = block(x)
        return self.ln_final(x[torch.arange(len(x), device=x.device), end])


class Block(nn.Module):
    """Attention and perceptron of four times the width, each after a normalisation and added to its input."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, activation)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Tokens to tokens."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    """Causal attention whose parameters have the names and initial values of ``nn.MultiheadAttention``'s."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Each token from itself and earlier ones."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend(qkv, self.heads, causal=True))


class Perceptron(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Token by token."""
        return self.c_proj(self.activation(self.c_fc(x)))
