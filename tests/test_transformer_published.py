"""The network computes what the published one computes: against its own outputs, and against a second writing of it.

The golden vectors are outputs of the published implementation with random weights. They fix one configuration; the
function `published_forward`, which shares no code with the package and is held to the same vectors, checks the others.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from qamdt.models.transformer_qamdt import QAMDTTransformer2DModel
from qamdt.published.convert import convert_transformer_state_dict, transformer_config_from_original


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "tiny_p4x1.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if "/" not in name}


@pytest.fixture(scope="module")
def golden_params():
    params = json.loads((GOLDEN / "tiny_p4x1.json").read_text())
    return {name: params[name] for name in params if name not in ("model_class", "num_patches", "grid", "pad")}


@pytest.fixture(scope="module")
def golden_weights():
    return load_file(GOLDEN / "tiny_p4x1.safetensors")


def build(params, weights):
    model = QAMDTTransformer2DModel(**transformer_config_from_original(params)).eval()
    model.load_state_dict(convert_transformer_state_dict(weights))
    return model


def call(model, inputs, keep_ids=None):
    return model(
        inputs["x"],
        inputs["t"],
        inputs["context"],
        inputs["context_mask"],
        quality_level=inputs["mos"][:, 0],
        keep_ids=keep_ids,
    ).sample


def attend(query, key, value, num_heads, mask=None):
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def published_forward(w, p, x, t, context, context_mask, mos, keep_ids=None):
    """The published network written down from its description, on tensors under their published names."""
    dim, num_heads, (pt, pf), (ot, of) = p["hidden_size"], p["num_heads"], p["patch_size"], p["overlap"]

    def linear(h, name):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(h):
        return F.layer_norm(h, (dim,), eps=1e-6)

    def block(name, h, skip=None):
        if skip is not None:
            h = linear(torch.cat([h, skip], -1), f"{name}.skip_linear")
        table = w[f"{name}.scale_shift_table"] + t0.view(-1, 6, dim)
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unsqueeze(2).unbind(1)
        qkv = linear(norm(h) * (1 + scale1) + shift1, f"{name}.attn.qkv").chunk(3, -1)
        h = h + gate1 * linear(attend(*qkv, num_heads), f"{name}.attn.proj")
        query, kv = linear(h, f"{name}.cross_attn.q_linear"), linear(y, f"{name}.cross_attn.kv_linear")
        h = h + linear(attend(query, *kv.chunk(2, -1), num_heads, context_mask), f"{name}.cross_attn.proj")
        hidden = F.gelu(linear(norm(h) * (1 + scale2) + shift2, f"{name}.mlp.fc1"), approximate="tanh")
        return h + gate2 * linear(hidden, f"{name}.mlp.fc2")

    # Patches; an odd row of padding goes to the end.
    gt, gf = (math.ceil((n - k) / (k - o)) + 1 for n, k, o in zip(x.shape[2:], (pt, pf), (ot, of), strict=True))
    pad_t, pad_f = (gt - 1) * (pt - ot) + pt - x.shape[2], (gf - 1) * (pf - of) + pf - x.shape[3]
    padded = F.pad(x, (pad_f // 2, pad_f - pad_f // 2, pad_t // 2, pad_t - pad_t // 2))
    z = F.conv2d(padded, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], (pt - ot, pf - of))
    z = z.flatten(2).transpose(1, 2) + w["pos_embed"]

    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = t[:, None].float() * freqs  # float32 whatever the weights
    features = torch.cat([angles.cos(), angles.sin()], -1).type_as(x)
    te = linear(F.silu(linear(features, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    t0 = linear(F.silu(te), "t_block.1")
    y = linear(context, "y_embedder")
    s = input_skip = torch.cat([w["mos_embed.weight"][mos - 1].view(-1, 1, dim), z], 1)

    half = (p["depth"] - p["decode_layer"]) // 2
    if keep_ids is not None:
        kept = torch.stack([row[ids] for row, ids in zip(s[:, 1:], keep_ids, strict=True)])
        s = torch.cat([s[:, :1], kept], 1)
    skips = []
    for i in range(half):
        s = block(f"en_inblocks.{i}", s)
        skips.append(s)
    for i in range(half):
        s = block(f"en_outblocks.{i}", s, skips.pop())
    if keep_ids is None:
        s = torch.cat([s[:, :1], s[:, 1:] + w["decoder_pos_embed"]], 1)
    else:
        full = w["mask_token"].repeat(len(x), gt * gf, 1)
        hidden = torch.ones(len(x), 1 + gt * gf, 1)
        for b, ids in enumerate(keep_ids):
            full[b, ids] = s[b, 1:]
            hidden[b, 1 + ids] = 0
        before = torch.cat([s[:, :1], full + w["decoder_pos_embed"]], 1)
        s = hidden * block("sideblocks.0", before) + (1 - hidden) * before
    for i in range(p["decode_layer"]):
        s = block(f"de_blocks.{i}", s, input_skip)

    shift, scale = (w["final_layer.scale_shift_table"] + te[:, None]).chunk(2, 1)
    out = linear(norm(s[:, 1:]) * (1 + scale) + shift, "final_layer.linear").view(len(x), gt, gf, pt, pf, -1)
    total, cover = torch.zeros_like(padded), torch.zeros_like(padded)
    for i in range(gt):
        for j in range(gf):
            window = (..., slice(i * (pt - ot), i * (pt - ot) + pt), slice(j * (pf - of), j * (pf - of) + pf))
            total[window] += out[:, i, j].permute(0, 3, 1, 2)
            cover[window] += 1
    return (total / cover)[:, :, pad_t // 2 :, pad_f // 2 :][:, :, : x.shape[2], : x.shape[3]]


def published_positions(p):
    """The fixed positions in numpy, in the precision of the published code."""
    sizes = [
        math.ceil((n - k) / (k - o)) + 1
        for n, k, o in zip(p["input_size"], p["patch_size"], p["overlap"], strict=True)
    ]
    base, quarter = p["input_size"][0] // p["patch_size"][0] * 2, p["hidden_size"] // 4
    omega = 1 / 10000 ** (np.arange(quarter) / quarter)
    halves = []
    for size in sizes:
        position = np.arange(size, dtype=np.float32) / np.float32(size / base) / p.get("lewei_scale", 1.0)
        angles = np.outer(position, omega)
        halves.append(np.concatenate([np.sin(angles), np.cos(angles)], 1))
    time, frequency = halves
    rows = [np.concatenate([frequency[j], time[i]]) for i in range(sizes[0]) for j in range(sizes[1])]
    return torch.from_numpy(np.stack(rows)).float()[None]


def random_weights(p, generator):
    """Random tensors under the published names, none of them zero; sizes as the golden ones scale with the width."""
    dim, mlp = p["hidden_size"], int(p["hidden_size"] * p["mlp_ratio"])
    half = (p["depth"] - p["decode_layer"]) // 2
    positions = published_positions(p)
    num_features = p["patch_size"][0] * p["patch_size"][1] * p["in_channels"]
    linears = {
        "t_embedder.mlp.0": (dim, 256),
        "t_embedder.mlp.2": (dim, dim),
        "t_block.1": (6 * dim, dim),
        "y_embedder": (dim, p["cond_dim"]),
        "final_layer.linear": (num_features, dim),
    }
    shapes = {
        "decoder_pos_embed": positions.shape,
        "mask_token": (1, 1, dim),
        "mos_embed.weight": (5, dim),
        "x_embedder.proj.weight": (dim, p["in_channels"], *p["patch_size"]),
        "x_embedder.proj.bias": (dim,),
        "final_layer.scale_shift_table": (2, dim),
    }
    stacks = {"en_inblocks": half, "en_outblocks": half, "de_blocks": p["decode_layer"], "sideblocks": 1}
    for block in [f"{stack}.{i}" for stack, count in stacks.items() for i in range(count)]:
        shapes[f"{block}.scale_shift_table"] = (6, dim)
        linears |= {
            f"{block}.attn.qkv": (3 * dim, dim),
            f"{block}.attn.proj": (dim, dim),
            f"{block}.cross_attn.q_linear": (dim, dim),
            f"{block}.cross_attn.kv_linear": (2 * dim, dim),
            f"{block}.cross_attn.proj": (dim, dim),
            f"{block}.mlp.fc1": (mlp, dim),
            f"{block}.mlp.fc2": (dim, mlp),
        }
        if not block.startswith(("en_in", "side")):
            linears[f"{block}.skip_linear"] = (dim, 2 * dim)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    weights = {
        name: torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if len(shape) > 1 else 10)
        for name, shape in shapes.items()
    }
    return weights | {"pos_embed": positions}


def test_full_pass_equals_the_published_network(golden, golden_params, golden_weights):
    with torch.no_grad():
        sample = call(build(golden_params, golden_weights), golden)
    torch.testing.assert_close(sample, golden["out_eval"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_masked_pass_and_its_gradients_equal_the_published_network(golden, golden_params, golden_weights, training):
    model = build(golden_params, golden_weights).train(training)
    sample = call(model, golden, keep_ids=golden["ids_keep"])
    torch.testing.assert_close(sample, golden["out_train"], atol=1e-5, rtol=0)

    F.mse_loss(sample, golden["train_target"]).backward()
    published = convert_transformer_state_dict(load_file(GOLDEN / "tiny_p4x1_grads.safetensors"))
    assert published.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        # Biases of keys have no effect on a softmax: their gradient is nothing but rounding.
        atol = 1e-8 if name.endswith("to_k.bias") else 1e-4 * published[name].norm().item()
        assert (parameter.grad - published[name]).norm().item() <= atol, name


def test_the_second_writing_equals_the_published_network(golden, golden_params, golden_weights):
    torch.testing.assert_close(published_positions(golden_params), golden_weights["pos_embed"], atol=1e-6, rtol=0)
    inputs = [golden[name] for name in ("x", "t", "context", "context_mask", "mos")]
    full = published_forward(golden_weights, golden_params, *inputs)
    torch.testing.assert_close(full, golden["out_eval"], atol=1e-5, rtol=0)
    masked = published_forward(golden_weights, golden_params, *inputs, keep_ids=golden["ids_keep"])
    torch.testing.assert_close(masked, golden["out_train"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": [2, 2], "num_heads": 8},
        {"patch_size": [16, 4], "input_size": [64, 16], "mlp_ratio": 2.5},
        {"patch_size": [4, 2], "overlap": [2, 1], "input_size": [18, 9]},
        {"patch_size": [4, 4], "overlap": [1, 2], "input_size": [17, 9]},
        {"patch_size": [3, 5], "input_size": [16, 8]},
        {"depth": 9, "decode_layer": 4},
        {"depth": 5, "decode_layer": 1, "hidden_size": 24, "num_heads": 2, "cond_dim": 20, "in_channels": 3},
        {"depth": 4, "decode_layer": 4, "lewei_scale": 2.0},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()),
)
def test_other_configurations_equal_the_second_writing(golden_params, changes):
    generator = torch.Generator().manual_seed(0)
    params = golden_params | changes
    # In float64, where rounding does not blur what is compared.
    weights = {name: tensor.double() for name, tensor in random_weights(params, generator).items()}
    model = build(params, weights).double()
    model.load_state_dict(convert_transformer_state_dict(weights))
    inputs = {
        "x": torch.randn(2, params["in_channels"], *params["input_size"], generator=generator).double(),
        "t": torch.tensor([3, 871]),
        "context": torch.randn(2, 5, params["cond_dim"], generator=generator).double(),
        "context_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "mos": torch.tensor([[2], [5]]),
    }
    keep_ids = torch.rand(2, weights["pos_embed"].shape[1], generator=generator).argsort(1)
    keep_ids = keep_ids[:, : math.ceil(keep_ids.shape[1] / 2)]
    with torch.no_grad():
        for ids in (None, keep_ids):
            published = published_forward(weights, params, *inputs.values(), keep_ids=ids)
            torch.testing.assert_close(call(model, inputs, keep_ids=ids), published, atol=1e-6, rtol=0)


def test_published_sizes():
    shapes = json.loads((GOLDEN / "real_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = QAMDTTransformer2DModel()
    num_published = sum(math.prod(shape) for name, shape in shapes.items() if name != "pos_embed")
    assert num_published == 676_245_920
    assert sum(parameter.numel() for parameter in model.parameters()) == num_published + 1152  # one more level
