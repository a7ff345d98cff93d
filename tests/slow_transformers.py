"""Transformers written slowly, from a state dict in float64, and the layouts of released models as formulas."""

import torch
from torch.nn import functional as F


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_layout(width, depth, patch, size, channels=3):
    """Names and shapes below ``visual.`` of released MERU models, in their order."""
    layout = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + (size // patch) ** 2, width)}
    layout |= {
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        at = f"blocks.{i}."
        layout |= norm(at + "norm1", width)
        layout |= linear(at + "attn.qkv", width, 3 * width) | linear(at + "attn.proj", width, width)
        layout |= norm(at + "norm2", width)
        layout |= linear(at + "mlp.fc1", width, 4 * width) | linear(at + "mlp.fc2", 4 * width, width)
    return layout | norm("norm", width)


def text_layout(vocabulary, length, width, layers):
    """Names and shapes below ``textual.`` of released MERU models, in their order."""
    layout = {"posit_embed": (length, width), "attn_mask": (length, length)}
    layout |= {"token_embed.weight": (vocabulary, width)}
    for i in range(layers):
        at = f"resblocks.{i}."
        layout |= {at + "attn.in_proj_weight": (3 * width, width), at + "attn.in_proj_bias": (3 * width,)}
        layout |= linear(at + "attn.out_proj", width, width) | norm(at + "ln_1", width)
        layout |= linear(at + "mlp.c_fc", width, 4 * width) | linear(at + "mlp.c_proj", 4 * width, width)
        layout |= norm(at + "ln_2", width)
    return layout | norm("ln_final", width)


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def jitter(module):
    """Values in which no two parts are alike, norms and biases included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tokens_like(rows, length, end):
    """Rows of start, text and end, padded with zeros."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, words in zip(tokens, rows, strict=True):
        row[0], row[words + 1] = end - 1, end
        row[1 : words + 1] = torch.randint(1, end - 1, (words,), generator=generator)
    return tokens


def slow_attention(x, weight, bias, heads, causal):
    """Attention by loops over images, heads and tokens."""
    n, length, width = x.shape
    out, each = torch.zeros_like(x), width // heads
    for i in range(n):
        q, k, v = (x[i] @ weight.T + bias).chunk(3, dim=1)
        for h in range(heads):
            part = slice(h * each, (h + 1) * each)
            for t in range(length):
                seen = t + 1 if causal else length
                weights = (q[t, part] @ k[:seen, part].T / each**0.5).softmax(0)
                out[i, t, part] = weights @ v[:seen, part]
    return out


def activate(x, activation):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5)) if activation == "gelu" else x * (1.702 * x).sigmoid()


def slow_text(w, tokens, heads, activation):
    """The text encoder of MERU, from a state dict in float64."""
    width = w["ln_final.weight"].shape
    x = w["token_embed.weight"][tokens] + w["posit_embed"][: tokens.shape[1]]
    for i in range(sum(name.endswith("ln_1.weight") for name in w)):
        at = f"resblocks.{i}."
        y = F.layer_norm(x, width, w[at + "ln_1.weight"], w[at + "ln_1.bias"], eps=1e-5)
        y = slow_attention(y, w[at + "attn.in_proj_weight"], w[at + "attn.in_proj_bias"], heads, True)
        x = x + y @ w[at + "attn.out_proj.weight"].T + w[at + "attn.out_proj.bias"]
        y = F.layer_norm(x, width, w[at + "ln_2.weight"], w[at + "ln_2.bias"], eps=1e-5)
        y = activate(y @ w[at + "mlp.c_fc.weight"].T + w[at + "mlp.c_fc.bias"], activation)
        x = x + y @ w[at + "mlp.c_proj.weight"].T + w[at + "mlp.c_proj.bias"]
    x = F.layer_norm(x, width, w["ln_final.weight"], w["ln_final.bias"], eps=1e-5)
    return torch.stack([row[line.argmax()] for row, line in zip(x, tokens, strict=True)])


def slow_vit(w, images, heads, patch, activation):
    """The vision transformer of MERU, with CLIP's first normalisation where there is one, in float64."""
    width = w["norm.weight"].shape
    tokens = []
    for row in range(images.shape[2] // patch):
        for column in range(images.shape[3] // patch):
            cut = images[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            token = cut.flatten(1) @ w["patch_embed.proj.weight"].flatten(1).T
            tokens.append(token + w.get("patch_embed.proj.bias", 0))
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), torch.stack(tokens, dim=1)], dim=1)
    x = x + w["pos_embed"]
    if "norm_pre.weight" in w:
        x = F.layer_norm(x, width, w["norm_pre.weight"], w["norm_pre.bias"], eps=1e-5)
    for i in range(sum(name.endswith("norm1.weight") for name in w)):
        at = f"blocks.{i}."
        y = F.layer_norm(x, width, w[at + "norm1.weight"], w[at + "norm1.bias"], eps=1e-5)
        y = slow_attention(y, w[at + "attn.qkv.weight"], w[at + "attn.qkv.bias"], heads, False)
        x = x + y @ w[at + "attn.proj.weight"].T + w[at + "attn.proj.bias"]
        y = F.layer_norm(x, width, w[at + "norm2.weight"], w[at + "norm2.bias"], eps=1e-5)
        y = activate(y @ w[at + "mlp.fc1.weight"].T + w[at + "mlp.fc1.bias"], activation)
        x = x + y @ w[at + "mlp.fc2.weight"].T + w[at + "mlp.fc2.bias"]
    return F.layer_norm(x[:, 0], width, w["norm.weight"], w["norm.bias"], eps=1e-5)


def doubles(module):
    return {
        name: tensor.double() for name, tensor in module.state_dict().items() if tensor.is_floating_point()
    }
