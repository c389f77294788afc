"""Numbers that the golden fixtures and test/cpu/pytorch-golden.test.ts both draw, so that only results are stored."""
import numpy as np
import torch


class Rng:
    """mulberry32 seeded by a string, as in test/support/kernel-cases/build.ts. Numbers k = 1, 2, ... come in order."""

    def __init__(self, seed):
        state = 2166136261
        for c in seed:
            state = ((state ^ ord(c)) * 16777619) & 0xFFFFFFFF
        self.state = state

    def draw(self, n):
        """n numbers in [0, 1)."""
        k = np.arange(1, n + 1, dtype=np.uint64)
        s = ((self.state + k * 0x6D2B79F5) & 0xFFFFFFFF).astype(np.uint32)
        self.state = int(s[-1]) if n else self.state
        z = (s ^ (s >> np.uint32(15))) * (s | np.uint32(1))
        z = z ^ (z + (z ^ (z >> np.uint32(7))) * (z | np.uint32(61)))
        return (z ^ (z >> np.uint32(14))).astype(np.float64) / 2**32

    def uniform(self, lo, hi, shape):
        values = lo + (hi - lo) * self.draw(int(np.prod(shape)))
        return values.astype(np.float32).reshape(shape)

    def int(self, lo, hi, shape):
        """Integers in [lo, hi], both included."""
        return lo + np.floor(self.draw(int(np.prod(shape))) * (hi - lo + 1)).astype(np.int64).reshape(shape)


def text(values):
    """Numbers as one string, seven digits each; JavaScript's names for those that are not finite."""
    if isinstance(values, torch.Tensor):
        values = values.detach().double().reshape(-1).tolist()
    names = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN", "-0": "0"}
    shown = [f"{v:.7g}" for v in np.asarray(values, dtype=np.float64).reshape(-1)]
    return " ".join(names.get(s, s) for s in shown)


def digest(name, values):
    """Norm of a tensor and its products with two fixed random vectors: what is compared in place of the elements."""
    v = np.asarray(values, dtype=np.float64).reshape(-1)
    r = Rng(name).draw(2 * v.size) * 2 - 1
    return [float(np.sqrt(v @ v)), float(v @ r[: v.size]), float(v @ r[v.size :])]
