"""What PyTorch makes of the op cases (golden_op_cases.py), in float64: outputs and gradients."""
import numpy as np
import torch
import torch.nn.functional as F
from golden_op_cases import case_list
from golden_values import Rng, text

inf = float("inf")

unary = {
    "neg": torch.neg, "abs": torch.abs, "sign": torch.sign, "square": torch.square, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid, "relu": F.relu, "relu2": lambda x: F.relu(x) ** 2, "sin": torch.sin, "cos": torch.cos,
    "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu, "silu": F.silu, "softplus": F.softplus,
}
positive = {"sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "recip": torch.reciprocal, "log": torch.log}
binary = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "maximum": torch.maximum,
    "minimum": torch.minimum,
}
compare = {"eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge}
gates = {
    "silu": F.silu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu, "relu": F.relu,
    "sigmoid": torch.sigmoid, "identity": lambda x: x,
}


def prod(x, axes, keep):
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


reductions = {
    "sum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep),
    "mean": lambda x, axes, keep: torch.mean(x, axes, keepdim=keep),
    "max": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "min": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "prod": prod,
}


def attention(q, k, v, extra, causal=False, window=0, scale=None, bias=False, segments=False):
    """scaled_dot_product_attention with everything but the scores in one additive mask; the ends are aligned."""
    extra = list(extra)
    tq, tk, h = q.shape[1], k.shape[1], q.shape[2]
    distance = (torch.arange(tq)[:, None] + tk - tq) - torch.arange(tk)[None, :]
    seen = torch.ones(tq, tk, dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if window:
        seen &= distance.abs() < window
    mask = torch.zeros(1, 1, tq, tk, dtype=q.dtype).masked_fill(~seen, -inf)
    if bias:
        b = extra.pop(0)
        mask = mask + (b[:, tk - 1 - distance] if b.dim() == 2 else b)[None]
    if segments:
        sq, sk = (extra if len(extra) == 2 else extra * 2)
        mask = mask.masked_fill(sq[:, None, :, None] != sk[:, None, None, :], -inf)
    heads = [t.transpose(1, 2) for t in (q, k, v)]
    mask = mask.expand(q.shape[0], h, tq, tk)
    return F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


def packed(qkv, *extra, heads, kvHeads, **options):
    q, k, v = qkv.split([heads, kvHeads, kvHeads], dim=2)
    return attention(q, k, v, extra, **options)


def rope(x, cos, sin, *positions, rotated, interleaved):
    """Rotation as multiplication of complex numbers, one a pair."""
    r = 2 * cos.shape[1]
    at = positions[0] if positions else torch.arange(x.shape[1])[None]
    turn = torch.complex(cos[at], sin[at])[:, :, None]
    head = x[:, :, :rotated, :r]
    pairs = head.unflatten(-1, (-1, 2)) if interleaved else head.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    head = (turned if interleaved else turned.transpose(-1, -2)).flatten(-2)
    head = torch.cat([head, x[:, :, :rotated, r:]], -1)
    return torch.cat([head, x[:, :, rotated:]], 2)


def conv1d(x, w, *bias, stride=1, dilation=1, groups=1, padLeft=0, padRight=0):
    x = F.pad(x.transpose(1, 2), (padLeft, padRight))
    return F.conv1d(x, w, *bias, stride=stride, dilation=dilation, groups=groups).transpose(1, 2)


def cumsum(x, axis, reverse=False, exclusive=False):
    y = torch.cumsum(x.flip(axis) if reverse else x, axis)
    if exclusive:
        y = y - (x.flip(axis) if reverse else x)
    return y.flip(axis) if reverse else y


def cross_entropy(x, target, smoothing=0.0, zLoss=0.0, ignore=-1):
    flat, t = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    loss = F.cross_entropy(flat, t, reduction="none", label_smoothing=smoothing, ignore_index=ignore)
    return (loss + zLoss * torch.logsumexp(flat, -1) ** 2 * (t != ignore)).reshape(target.shape)


def linear_cross_entropy(h, w, target, rowscale, zLoss=0.0, logitScale=1.0):
    return (cross_entropy(logitScale * h @ w.T, target, zLoss=zLoss) * rowscale).sum()


def matmul(a, b, *rest, transA=False, transB=False, alpha=1.0, bias=False, addend=False):
    y = alpha * torch.matmul(a.mT if transA else a, b.mT if transB else b)
    rest = list(rest)
    if bias:
        y = y + rest.pop(0)
    return y + rest.pop(0) if addend else y


def layer_norm(x, *wb, eps, weight=True, bias=True):
    wb = list(wb)
    return F.layer_norm(x, x.shape[-1:], wb.pop(0) if weight else None, wb.pop(0) if bias else None, eps)


def slice_(x, axis, begin, end, step):
    return x[tuple(slice(begin, end, step) if k == axis else slice(None) for k in range(x.dim()))]


def pad(x, axis, before, after, value):
    widths = [0, 0] * (x.dim() - 1 - axis) + [before, after]
    return F.pad(x, widths, value=value)


def sort(x, descending):
    values, indices = torch.sort(x, dim=-1, descending=descending, stable=True)
    return [values, indices]


def topk(x, k):
    """torch.topk leaves the order of ties open: a stable sort says which of them come first."""
    values, indices = torch.sort(x, dim=-1, descending=True, stable=True)
    assert torch.equal(torch.topk(x, k)[0], values[..., :k])
    return [values[..., :k], indices[..., :k]]


functions = {
    **unary, **positive, **binary, **compare, **reductions,
    "exp": torch.exp, "pow": torch.pow, "where": lambda c, a, b: torch.where(c != 0, a, b),
    "clamp": lambda x, lo, hi: torch.clamp(x, float(lo), float(hi)),
    "powc": lambda x, e: x**e, "affine": lambda x, a, b: a * x + b,
    "scale_by": lambda x, s, c: x * s * c, "add_scaled": lambda a, b, ca, cb: ca * a + cb * b,
    "glu": lambda x, act: gates[act](x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "argmax": lambda x, axis: torch.argmax(x, axis), "argmin": lambda x, axis: torch.argmin(x, axis),
    "sumsq": lambda x: torch.linalg.vector_norm(x).square().reshape(1), "cumsum": cumsum,
    "softmax": lambda x: F.softmax(x, -1), "log_softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1), "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy, "matmul": matmul, "layer_norm": layer_norm,
    "rms_norm": lambda x, *w, eps: F.rms_norm(x, x.shape[-1:], *w, eps=eps), "conv1d": conv1d,
    "embedding": lambda table, i: F.embedding(i, table), "one_hot": lambda i, classes: F.one_hot(i, classes).double(),
    "gather": lambda x, i, axis: torch.gather(x, axis, i),
    "scatter_add": lambda i, x, axis, n: x.new_zeros([n if k == axis else d for k, d in enumerate(x.shape)])
    .scatter_add(axis, i, x),
    "sort": sort, "topk": topk, "rope": rope, "attention": lambda q, k, v, *e, **o: attention(q, k, v, e, **o),
    "attention_packed": packed, "permute": lambda x, order: x.permute(order),
    "expand": lambda x, shape: x.expand(shape), "slice": slice_, "pad": pad,
    "concat": lambda *x, axis: torch.cat(x, axis), "stack": lambda *x, axis: torch.stack(x, axis),
}


def make_input(text_of_spec, seed):
    kind, size, *rest = text_of_spec.split(" ")
    shape, rng = [int(n) for n in size.split("x")], Rng(seed)
    numbers = [float(v) for v in rest]
    if kind == "i":
        return torch.from_numpy(rng.int(*numbers, shape).astype(np.int64))
    if kind in "uc":
        values = rng.uniform(*numbers, shape)
    elif kind == "g":
        lo, hi, step = numbers
        values = lo + step * rng.int(0, round((hi - lo) / step), shape)
    else:
        values = np.array(numbers).reshape(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).double().requires_grad_(kind != "c")


def run(case, k):
    """Adds PyTorch's outputs and gradients; the gradient of the first output is drawn, those of others are zero."""
    seed = f"{case['op']} {k}"
    inputs = [make_input(spec, f"{seed} {j}") for j, spec in enumerate(case["inputs"])]
    outputs = functions[case["op"]](*inputs, **case.get("options", {}))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    result = {**case, "out": ["x".join(map(str, y.shape)) + ": " + text(y) for y in outputs]}
    y = outputs[0]
    if y.requires_grad and y.grad_fn is not None and case["op"] != "sign":
        dy = torch.from_numpy(Rng(f"{seed} dy").uniform(-1, 1, list(y.shape))).double()
        wanted = [x for x in inputs if x.requires_grad]
        grads = iter(torch.autograd.grad((y * dy).sum(), wanted, allow_unused=True))
        found = [next(grads) if x.requires_grad else None for x in inputs]
        result["grads"] = [None if g is None else text(g) for g in found]
    return result


def op_cases():
    return [run(case, k) for k, case in enumerate(case_list(unary, gates))]
