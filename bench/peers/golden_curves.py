"""Fifty training steps of GPT-2 and Llama as Hugging Face lays them out: names, layouts and masks are theirs."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from golden_models import AdamW, draw_parameter, shapes
from golden_values import Rng, text


class Conv1D(nn.Module):
    """GPT-2's linear layer: weight [in, out]."""

    def __init__(self, out, inner):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, out))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class GPT2Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d, eps=1e-5), nn.LayerNorm(d, eps=1e-5)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(3 * d, d), "c_proj": Conv1D(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(4 * d, d), "c_proj": Conv1D(d, 4 * d)})

    def forward(self, x):
        q, k, v = (s.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for s in self.attn.c_attn(self.ln_1(x)).split(x.shape[-1], 2))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
        x = x + self.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
        u = self.mlp.c_fc(self.ln_2(x))
        gelu_new = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        return x + self.mlp.c_proj(gelu_new)


class GPT2(nn.Module):
    def __init__(self, spec):
        super().__init__()
        d = spec["width"]
        self.wte, self.wpe = nn.Embedding(spec["vocab"], d), nn.Embedding(spec["context"], d)
        self.h = nn.ModuleList(GPT2Block(d, spec["attention"]["heads"]) for _ in range(spec["depth"]))
        self.ln_f = nn.LayerNorm(d, eps=1e-5)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    @staticmethod
    def names(spec):
        """Ours to theirs: name, and whether the matrix is stored the other way round."""
        out = {"embed.weight": ("wte.weight", False), "positions.weight": ("wpe.weight", False)}
        pairs = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
                 "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
        for k in range(spec["depth"]):
            for ours, theirs in pairs.items():
                at, to = f"blocks.{k}.{ours}", f"h.{k}.{theirs}"
                if ours.startswith("norm"):
                    out |= {f"{at}.weight": (f"{to}.weight", False), f"{at}.bias": (f"{to}.bias", False)}
                else:
                    out |= {at: (f"{to}.weight", True), f"{at}Bias": (f"{to}.bias", False)}
        return out | {"norm.weight": ("ln_f.weight", False), "norm.bias": ("ln_f.bias", False)}

    def load(self, params, spec):
        mine = self.state_dict()
        for ours, (theirs, turned) in self.names(spec).items():
            mine[theirs].copy_(params[ours].T if turned else params[ours])
        return sorted(mine) == sorted(theirs for theirs, _ in self.names(spec).values())


class LlamaNorm(nn.Module):
    def __init__(self, d, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotate_half(x):
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


class LlamaLayer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        d, a, f = spec["width"], spec["attention"], spec["ffn"]["hidden"]
        self.heads, self.groups, c = a["heads"], a["heads"] // a["kvHeads"], d // a["heads"]
        linear = lambda out, inner: nn.Linear(inner, out, bias=False)  # noqa: E731
        self.self_attn = nn.ModuleDict({"q_proj": linear(d, d), "k_proj": linear(a["kvHeads"] * c, d),
                                        "v_proj": linear(a["kvHeads"] * c, d), "o_proj": linear(d, d)})
        self.mlp = nn.ModuleDict({"gate_proj": linear(f, d), "up_proj": linear(f, d), "down_proj": linear(d, f)})
        self.input_layernorm, self.post_attention_layernorm = LlamaNorm(d, 1e-6), LlamaNorm(d, 1e-6)

    def forward(self, x, cos, sin):
        at, c = self.self_attn, x.shape[-1] // self.heads
        h = self.input_layernorm(x)
        q, k, v = (m(h).unflatten(-1, (-1, c)).transpose(1, 2) for m in (at.q_proj, at.k_proj, at.v_proj))
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = (t[:, :, None].expand(-1, -1, self.groups, -1, -1).flatten(1, 2) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + at.o_proj(mixed.transpose(1, 2).flatten(-2))
        h = self.post_attention_layernorm(x)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


class Llama(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.embed_tokens = nn.Embedding(spec["vocab"], spec["width"])
        self.layers = nn.ModuleList(LlamaLayer(spec) for _ in range(spec["depth"]))
        self.norm = LlamaNorm(spec["width"], 1e-6)
        self.lm_head = nn.Linear(spec["width"], spec["vocab"], bias=False)
        c = spec["width"] // spec["attention"]["heads"]
        self.inv_freq = 1.0 / spec["positions"]["theta"] ** (torch.arange(0, c, 2).double() / c)

    def forward(self, ids):
        freqs = torch.arange(ids.shape[1])[:, None] * self.inv_freq[None]
        emb = torch.cat((freqs, freqs), dim=-1)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, emb.cos().to(x.dtype), emb.sin().to(x.dtype))
        return self.lm_head(self.norm(x))

    def load(self, params, spec):
        a, f, c = spec["attention"], spec["ffn"]["hidden"], spec["width"] // spec["attention"]["heads"]
        theirs = {"embed_tokens.weight": params["embed.weight"], "norm.weight": params["norm.weight"],
                  "lm_head.weight": params["head.weight"]}
        for k in range(spec["depth"]):
            g = lambda name: params[f"blocks.{k}.{name}"]  # noqa: B023, E731
            q, key, v = g("attention.qkv").split([a["heads"] * c, a["kvHeads"] * c, a["kvHeads"] * c])
            gate, up = g("ffn.up").split([f, f])
            parts = {"self_attn.q_proj": q, "self_attn.k_proj": key, "self_attn.v_proj": v,
                     "self_attn.o_proj": g("attention.out"), "mlp.gate_proj": gate, "mlp.up_proj": up,
                     "mlp.down_proj": g("ffn.down"), "input_layernorm": g("norm1.weight"),
                     "post_attention_layernorm": g("norm2.weight")}
            theirs |= {f"layers.{k}.{name}.weight": value for name, value in parts.items()}
        mine = self.state_dict()
        for name, value in theirs.items():
            mine[name].copy_(value)
        return sorted(mine) == sorted(theirs)


def draw_tokens(seed, vocab, rows, length):
    """Rows of a noisy affine walk x -> 5x + 3: learnable, but not at once. [rows, length + 1]."""
    rng = Rng(seed)
    x = rng.int(0, vocab - 1, [rows])
    jumps = rng.int(0, vocab - 1, [rows, length])
    stay = rng.draw(rows * length).reshape(rows, length) < 0.8
    out = torch.empty(rows, length + 1, dtype=torch.long)
    for j in range(length + 1):
        out[:, j] = torch.from_numpy(x)
        if j < length:
            x = [int((5 * x[i] + 3) % vocab if stay[i, j] else jumps[i, j]) for i in range(rows)]
            x = torch.tensor(x).numpy()
    return out


def factor(schedule, step, total):
    """docs/train.md: linear warm-up to the peak, then constant with a last linear part, or half a cosine."""
    warm = round(schedule["warmup"] * total)
    if step < warm:
        return (step + 1) / warm
    floor = schedule["floor"]
    if schedule["kind"] == "cosine":
        return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    decay = round(schedule["decay"] * total)
    return 1.0 if step < total - decay else floor + (1 - floor) * (total - 1 - step) / decay


curves = [
    {
        "name": "GPT-2", "rows": 4, "accumulate": 1, "clip": 1, "length": 16,
        "spec": {"vocab": 31, "context": 16, "width": 24, "depth": 2, "tied": True, "positions": "learned",
                 "attention": {"kind": "full", "heads": 3, "kvHeads": 3, "bias": True},
                 "ffn": {"kind": "mlp", "hidden": 96, "activation": "gelu", "bias": True},
                 "norm": {"kind": "layer", "eps": 1e-5, "scale": True, "bias": True}},
        "optimiser": {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6, "decay": 0.1},
        "schedule": {"kind": "cosine", "warmup": 0.1, "floor": 0.1},
    },
    {
        "name": "Llama", "rows": 2, "accumulate": 2, "clip": 0.5, "length": 16,
        "spec": {"vocab": 31, "context": 16, "width": 32, "depth": 2, "tied": False,
                 "positions": {"kind": "rope", "theta": 10000},
                 "attention": {"kind": "full", "heads": 4, "kvHeads": 2, "bias": False},
                 "ffn": {"kind": "glu", "hidden": 80, "activation": "silu", "bias": False},
                 "norm": {"kind": "rms", "eps": 1e-6, "scale": True}},
        "optimiser": {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decay": 0.5},
        "schedule": {"kind": "wsd", "warmup": 0.06, "decay": 0.4, "floor": 0.05, "shape": "linear"},
    },
]


def train(case, dtype=torch.float64, steps=50, autocast=False):
    """Losses and gradient norms of each step."""
    spec, rows, length = case["spec"], case["rows"], case["length"]
    params = {path: torch.from_numpy(draw_parameter(f"curve {case['name']}", path, s)).to(dtype)
              for path, s in shapes(spec).items()}
    model = {"GPT-2": GPT2, "Llama": Llama}[case["name"]](spec).to(dtype)
    assert model.load(params, spec)
    # Norms, biases and positions are not decayed; the optimiser knows positions by our name.
    named = {{"wpe.weight": "positions.weight"}.get(n, n): p for n, p in model.named_parameters()}
    adam = AdamW(named, clip=case["clip"], **case["optimiser"])
    losses, norms = [], []
    for step in range(steps):
        total = 0.0
        for micro in range(case["accumulate"]):
            ids = draw_tokens(f"curve {case['name']} {step} {micro}", spec["vocab"], rows, length)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).to(dtype), ids[:, 1:].flatten()) / case["accumulate"]
            loss.backward()
            total += loss.item()
        losses.append(total)
        norms.append(adam.step(factor(case["schedule"], step, steps)))
    return losses, norms


def curve_cases():
    out = []
    for case in curves:
        losses, norms = train(case)
        out.append({**case, "losses": text(losses), "norms": text(norms)})
    return out
