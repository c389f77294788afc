"""Writes test/fixtures/pytorch/*.json: what PyTorch computes, for test/cpu/pytorch-golden.test.ts.

  python3 bench/peers/make_goldens.py && npx biome format --write test/fixtures/pytorch

Only results are stored; inputs are drawn by a generator that both languages have (golden_values.py). PyTorch works in
float64, so that the fixtures do not depend on the machine they were made on.
"""
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from golden_curves import curve_cases  # noqa: E402
from golden_models import model_cases  # noqa: E402
from golden_ops import op_cases  # noqa: E402

folder = Path(__file__).parents[2] / "test" / "fixtures" / "pytorch"


def write(name, cases):
    made = {"madeBy": f"bench/peers/make_goldens.py, PyTorch {torch.__version__}", "cases": cases}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(made, allow_nan=False) + "\n")
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    write("ops", op_cases())
    write("models", model_cases())
    write("curves", curve_cases())
