"""What the transformers for images and texts share: attention between tokens, and activations."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hacore.errors import HacoreError


class QuickGELU(nn.Module):
    r"""The activation of OpenAI's CLIP, :math:`x \, \sigma(1.702 x)`, near but not equal to GELU."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """One for one."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick": QuickGELU}


def attend(
    qkv: Float[Tensor, "n length threefold"], heads: int, causal: bool = False
) -> Float[Tensor, "n length width"]:
    r"""Attention of each token to all tokens, or to itself and earlier ones.

    .. math:: \mathrm{softmax}(q k^\top / \sqrt{w}) \, v

    for each of ``heads`` heads of width :math:`w`; ``qkv`` holds the queries of all heads, their keys, their values.
    """
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def check_transformer(width: int, layers: int, heads: int, activation: str) -> None:
    """Raise HacoreError where no transformer has these numbers."""
    if min(width, layers, heads) < 1 or width % heads:
        raise HacoreError(
            f"no transformer has width {width}, {layers} layers and {heads} heads: all are 1 or more, "
            "and the width is a multiple of the heads"
        )
    if activation not in ACTIVATIONS:
        raise HacoreError(f"there is no activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
