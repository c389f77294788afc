"""Every differentiable op with a counterpart in PyTorch: cases, and what PyTorch makes of them in float64.

An input is [kind, shape, ...]: u lo hi (uniform), g lo hi step (uniform on a grid, so that ties and exact bounds
occur), i lo hi (integers, both ends included), v values. Inputs are rounded to float32 before PyTorch sees them.
"""
import numpy as np
import torch
import torch.nn.functional as F
from golden_values import Rng, text

inf = float("inf")


def u(*shape, lo=-2, hi=2):
    return ["u", list(shape), lo, hi]


def grid(*shape, lo=-2, hi=2, step=0.5):
    return ["g", list(shape), lo, hi, step]


def ids(n, *shape):
    return ["i", list(shape), 0, n - 1]


def given(*values):
    return ["v", [len(values)], [str(v).replace("inf", "Infinity") if abs(v) == inf else v for v in values]]


# Where functions turn, overflow or lose digits.
edges = given(-100, -20, -5, -1, -0.5, -1e-4, 0, 1e-4, 0.5, 1, 5, 19, 21, 100)

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
    "clamp": lambda x, lo, hi: torch.clamp(x, lo, hi), "powc": lambda x, e: x**e, "affine": lambda x, a, b: a * x + b,
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


def case_list():
    add = lambda op, *inputs, **options: cases.append({"op": op, "inputs": list(inputs), "options": options})  # noqa: E731
    cases = []
    for op in unary:
        add(op, edges)
        add(op, u(9, lo=-4, hi=4))
    for op in positive:
        add(op, u(9, lo=0.05, hi=9))
    add("exp", given(-100, -20, -1, 0, 1, 20, 80))
    for op in [*binary, *compare]:
        lo, hi = (0.5, 3) if op == "div" else (-2, 2)
        add(op, grid(3, 4, lo=lo, hi=hi), grid(3, 4, lo=lo, hi=hi))
        add(op, u(2, 1, 3), u(4, 1, lo=lo, hi=hi))
    add("pow", u(2, 5, lo=0.1, hi=3), u(5))
    add("pow", given(0, 0, 0, 0, 2, 0.5), given(1, 2, 3, 0.5, 0, 3))
    for e in [2, 3, 0.5, -1, 1, 0]:
        add("powc", u(7, lo=0.1, hi=3), e=e)
    for e in [0, 1, 2, 3]:
        add("powc", given(-2, -0.5, 0, 3), e=e)
    add("clamp", grid(4, 6), lo=-1, hi=1)
    add("clamp", given(-1, 1, -1.0000001, 1.0000001, -inf, inf, 3e38, 0), lo=-1, hi=1)
    add("clamp", given(-inf, inf, -3, 1, 0), lo=-inf, hi=1)
    add("affine", u(7), a=-1.5, b=0.25)
    add("scale_by", u(2, 3), u(1), c=1.5)
    add("add_scaled", u(2, 3), u(2, 3), ca=0.5, cb=-2)
    add("where", grid(3, 4, lo=0, hi=1, step=1), u(3, 4), u(3, 4))
    add("where", grid(3, 1, lo=0, hi=1, step=1), u(1, 4), u(2, 1, 4))
    for act in gates:
        add("glu", u(3, 8, lo=-4, hi=4), act=act)
    for op in reductions:
        for shape, axes in [([3, 5], [1]), ([2, 3, 4], [0, 2]), ([2, 3, 2], [0, 1, 2]), ([4, 2, 3], [1])]:
            make = u if op in ("sum", "mean") else grid
            add(op, make(*shape), axes=axes, keep=axes == [1])
    add("prod", given(2, 0, 3, -1), axes=[0], keep=False)
    add("prod", given(2, 0, 3, 0), axes=[0], keep=False)
    for op in ("argmax", "argmin"):
        add(op, grid(3, 7, lo=-1, hi=1), axis=1)
        add(op, grid(4, 3, 2, lo=-1, hi=1), axis=0)
    add("sumsq", u(3, 5))
    for reverse in (False, True):
        for exclusive in (False, True):
            add("cumsum", u(3, 6), axis=1, reverse=reverse, exclusive=exclusive)
            add("cumsum", u(4, 3), axis=0, reverse=reverse, exclusive=exclusive)
    for op in ("softmax", "log_softmax", "logsumexp"):
        add(op, u(3, 7, lo=-5, hi=5))
        add(op, u(2, 40, lo=-100, hi=100))
        if op != "log_softmax":
            add(op, given(-inf, 1, -inf, 2, 0))
    for options in [{}, {"smoothing": 0.1}, {"zLoss": 0.01}, {"smoothing": 0.2, "zLoss": 0.003}]:
        add("cross_entropy", u(2, 3, 7, lo=-4, hi=4), ["i", [2, 3], -1, 6], **options)
    add("cross_entropy", u(4, 5, lo=-50, hi=50), ids(5, 4), smoothing=0.05, ignore=2)
    add("linear_cross_entropy", u(5, 4), u(7, 4), ["i", [5], -1, 6], u(5, lo=0, hi=1))
    add("linear_cross_entropy", u(5, 4), u(7, 4), ["i", [5], -1, 6], u(5, lo=0, hi=1), zLoss=0.01, logitScale=0.5)
    for shape in ([3, 8], [2, 2, 5]):
        d = shape[-1]
        add("rms_norm", u(*shape), u(d), eps=1e-6)
        add("rms_norm", u(*shape, lo=-0.01, hi=0.01), eps=1e-3)
        add("layer_norm", u(*shape), u(d), u(d), eps=1e-5)
        add("layer_norm", u(*shape, lo=9, hi=11), u(d), eps=1e-5, bias=False)
        add("layer_norm", u(*shape), u(d), eps=1e-2, weight=False)
        add("layer_norm", u(*shape, lo=-0.01, hi=0.01), eps=1e-3, weight=False, bias=False)
    for ta in (False, True):
        for tb in (False, True):
            add("matmul", u(*((3, 4) if ta else (4, 3))), u(*((5, 3) if tb else (3, 5))), transA=ta, transB=tb)
    add("matmul", u(2, 3, 4), u(5, 4), u(5), u(2, 3, 5), transB=True, bias=True, addend=True, alpha=0.5)
    add("matmul", u(2, 1, 3, 2), u(2, 2, 3))
    add("matmul", u(3, 2), u(2, 2, 3), u(2, 3, 3), addend=True)
    for options in [
        {}, {"stride": 2, "padLeft": 1, "padRight": 2}, {"dilation": 2, "padLeft": 4}, {"groups": 2, "padRight": 1},
        {"groups": 4, "dilation": 3, "stride": 2, "padLeft": 6},
    ]:
        add("conv1d", u(2, 7, 4), u(4, 4 // options.get("groups", 1), 3), u(4), **options)
    add("conv1d", u(1, 5, 2), u(3, 2, 1))
    add("embedding", u(5, 3), ids(5, 2, 4))
    add("one_hot", ids(4, 5), classes=4)
    for shape, axis, m in [([3, 4], 1, 6), ([4, 3], 0, 2), ([2, 3, 2], 1, 4)]:
        picked = [m if k == axis else d for k, d in enumerate(shape)]
        add("gather", u(*shape), ids(shape[axis], *picked), axis=axis)
        add("scatter_add", ids(shape[axis], *picked), u(*picked), axis=axis, n=shape[axis])
    for descending in (False, True):
        add("sort", grid(3, 9, lo=-1, hi=1), descending=descending)
    add("topk", grid(3, 9, lo=-1, hi=1), k=4)
    for interleaved in (False, True):
        add("rope", u(2, 3, 3, 6), u(5, 2, lo=-1, hi=1), u(5, 2, lo=-1, hi=1), rotated=2, interleaved=interleaved)
        add("rope", u(2, 3, 1, 4), u(5, 2), u(5, 2), ids(5, 2, 3), rotated=1, interleaved=interleaved)
    qkv = lambda tq, tk, h, hkv, d=4, b=1: (u(b, tq, h, d), u(b, tk, hkv, d), u(b, tk, hkv, d))  # noqa: E731
    add("attention", *qkv(4, 4, 1, 1))
    add("attention", *qkv(5, 5, 2, 1), causal=True)
    add("attention", *qkv(2, 5, 2, 2), causal=True, scale=0.3)
    add("attention", *qkv(5, 3, 1, 1), causal=True)  # the first two queries see nothing
    add("attention", *qkv(6, 6, 2, 1), causal=True, window=2)
    add("attention", *qkv(5, 5, 1, 1), window=2)
    add("attention", *qkv(3, 4, 2, 1), u(2, 6), causal=True, bias=True)
    add("attention", *qkv(3, 4, 2, 2), u(2, 3, 4), bias=True)
    add("attention", *qkv(4, 4, 2, 1, b=2), ["i", [2, 4], 0, 1], causal=True, segments=True)
    add("attention", *qkv(3, 4, 1, 1), ["i", [1, 3], 0, 2], ["i", [1, 4], 0, 1], segments=True)
    add("attention_packed", u(2, 4, 4, 4), heads=2, kvHeads=1, causal=True)
    add("attention_packed", u(1, 4, 8, 2), u(4, 7), ["i", [1, 4], 0, 1], heads=4, kvHeads=2, causal=True, window=3,
        bias=True, segments=True)
    add("permute", u(2, 3, 4), order=[2, 0, 1])
    add("expand", u(2, 1, 3), shape=[2, 2, 2, 3])
    add("slice", u(3, 7), axis=1, begin=1, end=6, step=2)
    add("slice", u(4, 3), axis=0, begin=-3, end=-1, step=1)
    add("pad", u(2, 3), axis=1, before=1, after=2, value=-1.5)
    add("concat", u(2, 3), u(2, 1), u(2, 2), axis=1)
    add("stack", u(2, 3), u(2, 3), axis=1)
    return cases


def make_input(spec, seed):
    kind, shape, *rest = spec
    rng = Rng(seed)
    if kind == "i":
        return torch.from_numpy(rng.int(*rest, shape))
    if kind == "u":
        values = rng.uniform(*rest, shape)
    elif kind == "g":
        lo, hi, step = rest
        values = lo + step * rng.int(0, round((hi - lo) / step), shape)
    else:
        values = np.array([float(v) for v in rest[0]]).reshape(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).double().requires_grad_()


def run(case, k):
    """Adds PyTorch's outputs and gradients; the gradient of the first output is drawn, those of others are zero."""
    seed = f"{case['op']} {k}"
    inputs = [make_input(spec, f"{seed} {j}") for j, spec in enumerate(case["inputs"])]
    outputs = functions[case["op"]](*inputs, **case["options"])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    result = {**case, "out": [{"shape": list(y.shape), "values": text(y)} for y in outputs]}
    y = outputs[0]
    if y.requires_grad and y.grad_fn is not None and case["op"] != "sign":
        dy = torch.from_numpy(Rng(f"{seed} dy").uniform(-1, 1, list(y.shape))).double()
        wanted = [x for x in inputs if x.requires_grad]
        grads = iter(torch.autograd.grad((y * dy).sum(), wanted, allow_unused=True))
        found = [next(grads) if x.requires_grad else None for x in inputs]
        result["grads"] = [None if g is None else text(g) for g in found]
    return result


def op_cases():
    return [run(case, k) for k, case in enumerate(case_list())]
