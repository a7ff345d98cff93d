"""The transformers: the layout of released MERU models, slow references, what a token may see, bad input."""

import copy

import pytest
import torch
from slow_transformers import (
    doubles,
    jitter,
    shapes,
    slow_text,
    slow_vit,
    text_layout,
    tokens_like,
    vit_layout,
)
from torch import nn

from hacore.encoders.text import TextEncoder
from hacore.encoders.vit import SIZES, ViT, sincos
from hacore.errors import HacoreError

SMALL_TEXT = {"vocabulary": 40, "length": 10, "width": 24, "layers": 2, "heads": 3}
SMALL_VIT = {"name": "vit", "width": 24, "depth": 2, "heads": 3, "patch": 4, "size": 16}


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads"),
    [("vit-s", 384, 12, 12), ("vit-b", 768, 12, 12), ("vit-l", 1024, 24, 16)],
)
def test_vit_has_the_layout_of_released_models(name, width, depth, heads):
    assert SIZES[name] == (width, depth, heads)
    with torch.device("meta"):
        vit = ViT(name)
    assert list(shapes(vit).items()) == list(vit_layout(width, depth, 16, 224).items())
    assert {tensor.dtype for tensor in vit.state_dict().values()} == {torch.float32}
    assert vit(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, width)
    assert (vit.dim, vit.width, vit.depth, vit.heads) == (width, width, depth, heads)


def test_text_encoder_has_the_layout_of_released_models():
    with torch.device("meta"):
        text = TextEncoder(49408, 77)
    assert list(shapes(text).items()) == list(text_layout(49408, 77, 512, 12).items())
    dtypes = {name: tensor.dtype for name, tensor in text.state_dict().items()}
    assert dtypes.pop("attn_mask") == torch.bool
    assert set(dtypes.values()) == {torch.float32}
    assert text(torch.zeros(2, 77, dtype=torch.int64, device="meta")).shape == (2, 512)


def test_mask_of_the_layout_hides_later_tokens():
    mask = TextEncoder(**SMALL_TEXT).attn_mask
    assert all(mask[i, j] == (j > i) for i in range(10) for j in range(10))


@pytest.mark.parametrize("activation", ["gelu", "quick"])
def test_text_encoder_is_as_its_slow_reference(activation):
    text = jitter(TextEncoder(**SMALL_TEXT, activation=activation))
    tokens = tokens_like([3, 0, 8], 10, end=39)
    expected = slow_text(doubles(text), tokens, 3, activation)
    torch.testing.assert_close(text(tokens).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_vit_is_as_its_slow_reference(activation, pre_norm):
    vit = jitter(ViT(**SMALL_VIT, activation=activation, pre_norm=pre_norm))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = slow_vit(doubles(vit), images.double(), 3, 4, activation)
    torch.testing.assert_close(vit(images).double(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_are_those_of_torch():
    """The text encoder's block as torch's own layer with the same weights."""
    text = jitter(TextEncoder(**SMALL_TEXT))
    layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True)
    ours = text.resblocks[0].state_dict()
    renamed = {
        "self_attn.in_proj_weight": "attn.in_proj_weight",
        "self_attn.in_proj_bias": "attn.in_proj_bias",
    }
    pairs = {"self_attn.out_proj": "attn.out_proj", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
    pairs |= {"norm1": "ln_1", "norm2": "ln_2"}
    renamed |= {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}
    layer.load_state_dict({theirs: ours[name] for theirs, name in renamed.items()})
    x = torch.randn(2, 10, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(text.resblocks[0](x), layer(x, src_mask=text.attn_mask), rtol=1e-4, atol=1e-5)


def test_sincos_positions():
    """Row 1, column 3 of a 4 x 4 grid, width 8: two frequencies, 1 and 0.01."""
    position = sincos(8, 4)[0, 1 + 1 * 4 + 3].double()
    row, column = torch.tensor([1.0, 0.01]).double(), torch.tensor([3.0, 0.03]).double()
    expected = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()])
    torch.testing.assert_close(position, expected, rtol=0, atol=1e-6)
    assert sincos(8, 4)[0, 0].eq(0).all()
    assert not [name for name, _ in ViT(**SMALL_VIT).named_parameters() if name == "pos_embed"]
    assert [n for n, _ in ViT(**SMALL_VIT, positions="learned").named_parameters()][:2] == [
        "cls_token",
        "pos_embed",
    ]


def test_what_follows_the_end_has_no_effect():
    text = jitter(TextEncoder(**SMALL_TEXT))
    tokens = tokens_like([3, 5], 10, end=39)
    features = text(tokens)
    assert not torch.allclose(features[0], features[1])
    torch.testing.assert_close(text(tokens[:1]), features[:1], rtol=1e-5, atol=1e-6)  # batch of shorter texts
    other = tokens.clone()
    other[0, 5:] = 7
    torch.testing.assert_close(text(other), features, rtol=1e-5, atol=1e-6)
    other[0, 2] += 1
    assert not torch.allclose(text(other)[0], features[0], atol=1e-3)
    assert text(tokens[:0]).shape == (0, 24)


@pytest.mark.parametrize("make", [lambda: TextEncoder(**SMALL_TEXT), lambda: ViT(**SMALL_VIT)])
def test_all_weights_learn_and_copies_agree(make):
    module = make()
    batch = tokens_like([8, 8], 10, end=39) if isinstance(module, TextEncoder) else torch.rand(2, 3, 16, 16)
    other = copy.deepcopy(module)
    output = module(batch)
    assert output.equal(other(batch))
    (output * torch.arange(output.numel()).view_as(output)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_configurations_rebuild():
    text = TextEncoder(**SMALL_TEXT, activation="quick")
    assert TextEncoder(**text.config).config == text.config == SMALL_TEXT | {"activation": "quick"}
    vit = ViT(**SMALL_VIT, channels=1, positions="learned", activation="quick", pre_norm=True)
    again = ViT(**vit.config)
    assert again.config == vit.config
    assert shapes(again) == shapes(vit)
    assert shapes(vit)["patch_embed.proj.weight"] == (24, 1, 4, 4)


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    text = TextEncoder(500, 77, 64, 2, 2)
    block = text.resblocks[0]
    published = {
        text.token_embed.weight: 0.02,
        text.posit_embed: 0.01,
        block.attn.in_proj_weight: 64**-0.5,
        block.attn.out_proj.weight: (2 * 64 * 2) ** -0.5,
        block.mlp.c_fc.weight: (2 * 64) ** -0.5,
        block.mlp.c_proj.weight: (2 * 64 * 2) ** -0.5,
    }
    vit = ViT("vit", width=64, depth=1, heads=2, patch=4, size=32, positions="learned")
    published |= {
        vit.blocks[0].mlp.fc1.weight: 0.02,
        vit.blocks[0].attn.qkv.weight: 0.02,
        vit.pos_embed: 0.02,
    }
    for weight, deviation in published.items():
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert vit.cls_token.abs().max() < 1e-5
    assert vit.blocks[0].attn.qkv.bias.eq(0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextEncoder(2, 10), "3 tokens or more, .* not 2, .* context of 3 or more, not 10"),
        (lambda: TextEncoder(40, 10, 24, 2, 5), "width 24, 2 layers and 5 heads"),
        (lambda: TextEncoder(40, 10, 24, 0, 3), "width 24, 0 layers"),
        (lambda: TextEncoder(40, 10, 24, 2, 3, "tanh"), "no activation 'tanh'; choose one of gelu, quick"),
        (lambda: TextEncoder(**SMALL_TEXT)(torch.zeros(1, 11).long()), "up to 10 tokens, not 11"),
        (lambda: TextEncoder(**SMALL_TEXT)(torch.zeros(1, 0).long()), "up to 10 tokens, not 0"),
        (lambda: ViT("vit-xs"), "no vision transformer 'vit-xs'; choose one of vit-s"),
        (lambda: ViT("vit", width=24), "vit with width, depth and heads"),
        (lambda: ViT("vit-s", dim=10), "has 384 features, not 10"),
        (lambda: ViT("vit-s", size=30), "side 30 do not fall into patches of side 16"),
        (lambda: ViT("vit-s", patch=0), "patches of side 0"),
        (lambda: ViT("vit-s", channels=0), "images of 0 channels"),
        (lambda: ViT("vit-s", positions="none"), "positions 'none' do not fit width 384"),
        (lambda: ViT("vit", width=6, depth=1, heads=1), "do not fit width 6"),
        (lambda: ViT(**SMALL_VIT)(torch.zeros(1, 1, 16, 16)), r"takes images \(n, 3, h, w\)"),
        (lambda: ViT(**SMALL_VIT)(torch.zeros(1, 3, 12, 16)), "of at least 16 pixels"),
        (lambda: ViT(**SMALL_VIT)(torch.zeros(1, 3, 20, 16)), "16 x 16 pixels, not 20 x 16; resize"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(HacoreError, match=message):
        make()
