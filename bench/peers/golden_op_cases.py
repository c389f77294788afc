"""Cases for every differentiable op with a counterpart in PyTorch.

An input is "kind shape ...": u lo hi (uniform), c lo hi (the same, a constant), g lo hi step (uniform on a grid, so
that ties and exact bounds occur), i lo hi (integers, both ends included), v values.
"""
inf = float("inf")


def spec(kind, shape, *rest):
    return " ".join([kind, "x".join(map(str, shape)), *(str(v).replace("inf", "Infinity") for v in rest)])


def u(*shape, lo=-2, hi=2):
    return spec("u", shape, lo, hi)


def constant(*shape):
    return spec("c", shape, -1, 1)


def grid(*shape, lo=-2, hi=2, step=0.5):
    return spec("g", shape, lo, hi, step)


def integers(lo, hi, *shape):
    return spec("i", shape, lo, hi)


def given(*values):
    return spec("v", [len(values)], *values)


# Where functions turn, overflow or lose digits.
edges = given(-100, -20, -5, -1, -0.5, -1e-4, 0, 1e-4, 0.5, 1, 5, 19, 21, 100)


def case_list(unary, gates):
    """unary, gates: names of functions of one tensor, and of activations of gated layers."""
    cases = []

    def add(op, *inputs, **options):
        cases.append({"op": op, "inputs": list(inputs)} | ({"options": options} if options else {}))

    for op in unary:
        add(op, edges)
        add(op, u(9, lo=-4, hi=4))
    for op in ("sqrt", "rsqrt", "recip", "log"):
        add(op, u(9, lo=0.05, hi=9))
    add("exp", given(-100, -20, -1, 0, 1, 20, 80))
    for op in "add sub mul div maximum minimum eq ne lt le gt ge".split():
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
    add("clamp", given(-inf, inf, -3, 1, 0), lo="-Infinity", hi=1)
    add("affine", u(7), a=-1.5, b=0.25)
    add("scale_by", u(2, 3), u(1), c=1.5)
    add("add_scaled", u(2, 3), u(2, 3), ca=0.5, cb=-2)
    add("where", grid(3, 4, lo=0, hi=1, step=1), u(3, 4), u(3, 4))
    add("where", grid(3, 1, lo=0, hi=1, step=1), u(1, 4), u(2, 1, 4))
    for act in gates:
        add("glu", u(3, 8, lo=-4, hi=4), act=act)
    for op in ("sum", "mean", "max", "min", "prod"):
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
        add(op, u(1, 40, lo=-40, hi=40))
        if op != "log_softmax":
            add(op, given(-inf, 1, -inf, 2, 0))
    for options in [{}, {"smoothing": 0.1}, {"zLoss": 0.01}, {"smoothing": 0.2, "zLoss": 0.003}]:
        add("cross_entropy", u(2, 3, 7, lo=-4, hi=4), integers(-1, 6, 2, 3), **options)
    add("cross_entropy", u(4, 5, lo=-50, hi=50), integers(0, 4, 4), smoothing=0.05, ignore=2)
    add("linear_cross_entropy", u(5, 4), u(7, 4), integers(-1, 6, 5), u(5, lo=0, hi=1))
    add("linear_cross_entropy", u(5, 4), u(7, 4), integers(-1, 6, 5), u(5, lo=0, hi=1), zLoss=0.01, logitScale=0.5)
    for shape in ([2, 8], [2, 1, 5]):
        d = shape[-1]
        add("rms_norm", u(*shape), u(d), eps=1e-6)
        add("rms_norm", u(*shape, lo=-0.01, hi=0.01), eps=1e-3)
        add("layer_norm", u(*shape), u(d), u(d), eps=1e-5)
        add("layer_norm", u(*shape, lo=1, hi=5), u(d), eps=1e-5, bias=False)
        add("layer_norm", u(*shape), u(d), eps=1e-2, weight=False)
        add("layer_norm", u(*shape, lo=-0.01, hi=0.01), eps=1e-3, weight=False, bias=False)
    for ta in (False, True):
        for tb in (False, True):
            add("matmul", u(*((3, 4) if ta else (4, 3))), u(*((5, 3) if tb else (3, 5))), transA=ta, transB=tb)
    add("matmul", u(2, 3, 4), u(5, 4), u(5), u(2, 3, 5), transB=True, bias=True, addend=True, alpha=0.5)
    add("matmul", u(2, 1, 2, 2), u(2, 2, 3))
    add("matmul", u(3, 2), u(2, 2, 3), u(2, 3, 3), addend=True)
    for options in [
        {}, {"stride": 2, "padLeft": 1, "padRight": 2}, {"dilation": 2, "padLeft": 4}, {"groups": 2, "padRight": 1},
        {"groups": 4, "dilation": 3, "stride": 2, "padLeft": 6},
    ]:
        add("conv1d", u(1, 7, 4), u(4, 4 // options.get("groups", 1), 3), u(4), **options)
    add("conv1d", u(1, 5, 2), u(3, 2, 1))
    add("embedding", u(5, 3), integers(0, 4, 2, 4))
    add("one_hot", integers(0, 3, 5), classes=4)
    for shape, axis, m in [([3, 4], 1, 6), ([4, 3], 0, 2), ([2, 3, 2], 1, 4)]:
        picked = [m if k == axis else d for k, d in enumerate(shape)]
        add("gather", u(*shape), integers(0, shape[axis] - 1, *picked), axis=axis)
        add("scatter_add", integers(0, shape[axis] - 1, *picked), u(*picked), axis=axis, n=shape[axis])
    for descending in (False, True):
        add("sort", grid(3, 9, lo=-1, hi=1), descending=descending)
    add("topk", grid(3, 9, lo=-1, hi=1), k=4)
    for interleaved in (False, True):
        add("rope", u(1, 3, 3, 6), constant(5, 2), constant(5, 2), rotated=2, interleaved=interleaved)
        add("rope", u(2, 3, 1, 4), constant(5, 2), constant(5, 2), integers(0, 4, 2, 3), rotated=1,
            interleaved=interleaved)
    qkv = lambda tq, tk, h, hkv, d=4, b=1: (u(b, tq, h, d), u(b, tk, hkv, d), u(b, tk, hkv, d))  # noqa: E731
    add("attention", *qkv(4, 4, 1, 1))
    add("attention", *qkv(5, 5, 2, 1), causal=True)
    add("attention", *qkv(2, 5, 2, 2), causal=True, scale=0.3)
    add("attention", *qkv(5, 3, 1, 1), causal=True)  # the first two queries see nothing
    add("attention", *qkv(5, 5, 2, 1), causal=True, window=2)
    add("attention", *qkv(5, 5, 1, 1), window=2)
    add("attention", *qkv(3, 4, 2, 1), u(2, 6), causal=True, bias=True)
    add("attention", *qkv(3, 4, 2, 2), u(2, 3, 4), bias=True)
    add("attention", *qkv(4, 4, 2, 1, b=2), integers(0, 1, 2, 4), causal=True, segments=True)
    add("attention", *qkv(3, 4, 1, 1), integers(0, 2, 1, 3), integers(0, 1, 1, 4), segments=True)
    add("attention_packed", u(2, 4, 4, 4), heads=2, kvHeads=1, causal=True)
    add("attention_packed", u(1, 4, 8, 2), u(4, 7), integers(0, 1, 1, 4), heads=4, kvHeads=2, causal=True, window=3,
        bias=True, segments=True)
    add("permute", u(2, 3, 4), order=[2, 0, 1])
    add("expand", u(2, 1, 3), shape=[2, 2, 2, 3])
    add("slice", u(3, 7), axis=1, begin=1, end=6, step=2)
    add("slice", u(4, 3), axis=0, begin=-3, end=-1, step=1)
    add("pad", u(2, 3), axis=1, before=1, after=2, value=-1.5)
    add("concat", u(2, 3), u(2, 1), u(2, 2), axis=1)
    add("stack", u(2, 3), u(2, 3), axis=1)
    return cases
