"""Decoders in PyTorch for every ModelSpec (docs/spec.md): loss, gradients, three AdamW steps, in float64."""
import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from golden_values import Rng, digest, text

activations = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu, "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(), "silu": F.silu, "sigmoid": torch.sigmoid, "identity": lambda x: x,
}


def random_spec(r):
    heads = r.choice([1, 2, 3, 4])
    kv = r.choice([k for k in range(1, heads + 1) if heads % k == 0])
    width = heads * r.choice([4, 6])
    attention = {"kind": "full", "heads": heads, "kvHeads": kv, "window": r.choice([0, 0, 3]), "bias": r.random() < 0.4}
    if r.random() < 0.4:
        attention["headWidth"] = r.choice([2, 8, 10])
    kind = r.choice(["mlp", "glu"])
    acts = ["gelu", "gelu_erf", "relu", "relu2", "silu"] if kind == "mlp" else [
        "silu", "gelu", "relu", "sigmoid", "identity", "gelu_erf"]
    ffn = {"kind": kind, "hidden": r.choice([7, 16]), "activation": r.choice(acts), "bias": r.random() < 0.4}
    if r.random() < 0.5:
        norm = {"kind": "rms", "eps": r.choice([1e-6, 1e-2]), "scale": r.random() < 0.7}
    else:
        norm = {"kind": "layer", "eps": r.choice([1e-5, 1e-2]), "scale": r.random() < 0.7, "bias": r.random() < 0.5}
    positions = r.choice(["rope", "rope", "learned", "none"])
    if positions == "rope":
        positions = {"kind": "rope", "theta": r.choice([100, 10000]), "interleaved": r.random() < 0.5,
                     "fraction": r.choice([1, 0.5, 0.75])}
    return {
        "vocab": r.choice([11, 23]), "context": 16, "width": width, "depth": r.choice([1, 2]), "attention": attention,
        "ffn": ffn, "norm": norm, "positions": positions, "tied": r.random() < 0.5, "zLoss": r.choice([0, 0.01]),
    }


def head_width(spec):
    return spec["attention"].get("headWidth", spec["width"] // spec["attention"]["heads"])


def shapes(spec):
    """Names and shapes of parameters, as docs/spec.md states them."""
    a, f, n, d = spec["attention"], spec["ffn"], spec["norm"], spec["width"]
    packed = (a["heads"] + 2 * a["kvHeads"]) * head_width(spec)
    up = f["hidden"] * (2 if f["kind"] == "glu" else 1)
    norm = {"weight": [d]} if n["scale"] else {}
    if n.get("bias"):
        norm["bias"] = [d]
    out = {"embed.weight": [spec["vocab"], d]}
    if spec["positions"] == "learned":
        out["positions.weight"] = [spec["context"], d]
    for k in range(spec["depth"]):
        block = {f"norm1.{name}": s for name, s in norm.items()}
        block |= {"attention.qkv": [packed, d], "attention.out": [d, a["heads"] * head_width(spec)]}
        if a["bias"]:
            block |= {"attention.qkvBias": [packed], "attention.outBias": [d]}
        block |= {f"norm2.{name}": s for name, s in norm.items()}
        block |= {"ffn.up": [up, d], "ffn.down": [d, f["hidden"]]}
        if f["bias"]:
            block |= {"ffn.upBias": [up], "ffn.downBias": [d]}
        out |= {f"blocks.{k}.{name}": s for name, s in block.items()}
    out |= {f"norm.{name}": s for name, s in norm.items()}
    return out if spec["tied"] else out | {"head.weight": [spec["vocab"], d]}


def draw_parameter(seed, path, shape):
    rng = Rng(f"{seed} {path}")
    if len(shape) == 2:
        spread = math.sqrt(3 / shape[1])
        return rng.uniform(-spread, spread, shape)
    return rng.uniform(-0.2, 0.2, shape) if "bias" in path.lower() else rng.uniform(0.7, 1.3, shape)


def draw_batch(seed, vocab, rows, length):
    rng = Rng(seed)
    inputs = rng.int(0, vocab - 1, [rows, length])
    targets = rng.int(0, vocab - 1, [rows, length])
    targets[rng.draw(rows * length).reshape(rows, length) < 0.2] = -1
    border = rng.int(1, length - 1, [rows, 1])
    at = np.arange(length)[None]
    second = at >= border
    return [torch.from_numpy(x) for x in (inputs, targets, second.astype(np.int64), at - border * second)]


def rotate(x, positions, theta, fraction, interleaved):
    """x [B, H, T, D]. Interleaved pairs as in Su et al. and Meta's Llama, halves as in GPT-NeoX and Hugging Face."""
    r = 2 * math.floor(x.shape[-1] * fraction / 2)
    angle = positions[:, None, :, None] / theta ** (torch.arange(0, r, 2).double() / r)
    part, rest = x[..., :r], x[..., r:]
    if interleaved:
        turn = torch.polar(torch.ones_like(angle), angle)
        turned = torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
    else:
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        first, second = part.chunk(2, -1)
        turned = part * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([turned, rest], -1)


def decoder_loss(p, spec, inputs, targets, segments=None, positions=None):
    a, f, n = spec["attention"], spec["ffn"], spec["norm"]
    h, hkv, c = a["heads"], a["kvHeads"], head_width(spec)
    b, t = inputs.shape
    where = torch.arange(t)[None].expand(b, t) if positions is None else positions

    def norm(x, name):
        w, bias = p.get(f"{name}.weight"), p.get(f"{name}.bias")
        if n["kind"] == "rms":
            return F.rms_norm(x, x.shape[-1:], w, n["eps"])
        return F.layer_norm(x, x.shape[-1:], w, bias, n["eps"])

    distance = torch.arange(t)[:, None] - torch.arange(t)[None]
    seen = (distance >= 0)[None, None]
    if a["window"]:
        seen = seen & (distance < a["window"])
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])

    x = F.embedding(inputs, p["embed.weight"])
    if spec["positions"] == "learned":
        x = x + F.embedding(where, p["positions.weight"])
    for k in range(spec["depth"]):
        g = lambda name: p.get(f"blocks.{k}.{name}")  # noqa: B023, E731
        qkv = F.linear(norm(x, f"blocks.{k}.norm1"), g("attention.qkv"), g("attention.qkvBias"))
        q, key, v = (s.unflatten(-1, (-1, c)).transpose(1, 2) for s in qkv.split([h * c, hkv * c, hkv * c], -1))
        if isinstance(spec["positions"], dict):
            o = {name: value for name, value in spec["positions"].items() if name != "kind"}
            q, key = rotate(q, where, **o), rotate(key, where, **o)
        key, v = key.repeat_interleave(h // hkv, 1), v.repeat_interleave(h // hkv, 1)
        mixed = F.scaled_dot_product_attention(q, key, v, attn_mask=seen)
        x = x + F.linear(mixed.transpose(1, 2).flatten(-2), g("attention.out"), g("attention.outBias"))
        u = F.linear(norm(x, f"blocks.{k}.norm2"), g("ffn.up"), g("ffn.upBias"))
        act = activations[f["activation"]]
        if f["kind"] == "glu":
            gate, value = u.chunk(2, -1)
            u = act(gate) * value
        else:
            u = act(u)
        x = x + F.linear(u, g("ffn.down"), g("ffn.downBias"))
    logits = F.linear(norm(x, "norm"), p.get("head.weight", p["embed.weight"])).flatten(0, 1)
    flat = targets.flatten()
    loss = F.cross_entropy(logits, flat, reduction="sum", ignore_index=-1)
    loss = loss + spec["zLoss"] * torch.logsumexp(logits, -1)[flat >= 0].square().sum()
    return loss / (flat >= 0).sum()


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter 2019), by torch.optim's kernel; norms, biases, positions: none."""

    def __init__(self, params, lr, beta1, beta2, eps, decay, clip):
        self.params, self.clip = params, clip
        self.options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "amsgrad": False, "maximize": False}
        self.groups = [([], 0.0), ([], decay)]
        for name, p in params.items():
            matrix = p.dim() == 2 and name != "positions.weight"
            self.groups[matrix][0].append((p, torch.zeros_like(p), torch.zeros_like(p), torch.zeros(())))

    @torch.no_grad()
    def step(self, rate=1.0):
        """One update from the gradients in .grad; returns their norm before clipping."""
        grads = [p.grad for p in self.params.values()]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        if self.clip:
            for g in grads:
                g.mul_((self.clip / (norm + 1e-6)).clamp(max=1.0))
        for members, decay in self.groups:
            if members:
                p, m, v, count = (list(column) for column in zip(*members))
                for c in count:
                    c.add_(1)
                torch._fused_adamw_(p, [x.grad for x in p], m, v, [], count, weight_decay=decay,
                                    **{**self.options, "lr": rate * self.options["lr"]})
        for p in self.params.values():
            p.grad = None
        return norm.item()


def model_case(k):
    r = random.Random(k)
    spec = random_spec(r)
    rows, length, segmented = r.choice([2, 3]), r.choice([5, 9]), r.random() < 0.5
    optimiser = {"lr": 0.01, "beta1": r.choice([0.9, 0.8]), "beta2": 0.95, "eps": r.choice([1e-8, 1e-3]),
                 "decay": r.choice([0, 0.1, 1])}
    if spec["attention"]["bias"]:
        # A bias on keys that do not turn cancels in the softmax: its gradient is rounding error, which a small eps
        # would make into whole steps.
        optimiser["eps"] = 1e-3
    clip = r.choice([0, 0.3, 100])
    seed = f"model {k}"
    p = {path: torch.from_numpy(draw_parameter(seed, path, s)).double().requires_grad_()
         for path, s in shapes(spec).items()}
    start = {path: t.detach().clone() for path, t in p.items()}
    adam = AdamW(p, clip=clip, **optimiser)
    losses, norms, grads = [], [], {}
    for step in range(3):
        batch = draw_batch(f"{seed} batch {step}", spec["vocab"], rows, length)
        loss = decoder_loss(p, spec, *(batch if segmented else batch[:2]))
        loss.backward()
        grads = grads or {path: t.grad.clone() for path, t in p.items()}
        losses.append(loss.item())
        norms.append(adam.step())
    return {
        "spec": spec, "rows": rows, "length": length, "segmented": segmented, "optimiser": optimiser, "clip": clip,
        "losses": text(losses), "norms": text(norms),
        "digests": {path: text(digest(path, grads[path]) + digest(path, t.detach() - start[path]))
                    for path, t in p.items()},
    }


def model_cases(count=24):
    return [model_case(k) for k in range(count)]
