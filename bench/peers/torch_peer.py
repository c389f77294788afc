"""PyTorch as a peer: reads one JSON request a line, answers one JSON line. Started and stopped by bench/torch.ts.

  {"op": "gemm", "n": 1024, "dtype": "bf16", "seconds": 0.3}  -> {"gflops": ...}
  {"op": "train", "steps": 4}                                 -> {"tokens_per_s": ...}
"""
import json
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

matrices = {}
model = None


def gemm(n, dtype, seconds):
    key = (n, dtype)
    if key not in matrices:
        t = torch.bfloat16 if dtype == "bf16" else torch.float32
        matrices[key] = (torch.randn(n, n).to(t), torch.randn(n, n).to(t))
    a, b = matrices[key]
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return {"gflops": 2 * n**3 / best / 1e9}


class Block(nn.Module):
    """Pre-norm block: LayerNorm without bias, causal attention, GELU feed-forward."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Decoder(nn.Module):
    def __init__(self, vocab=4096, width=256, depth=6, heads=4, context=256):
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


class Trainer:
    """The row tiny-cpu: bf16 autocast, gradient clipping, fused AdamW; 8 x 256 tokens a step.

    The fused update is called directly: torch.optim wraps the same kernel, but importing its compiler hooks needs
    packages that a plain installation may lack.
    """

    def __init__(self):
        torch.manual_seed(0)
        self.model = Decoder()
        self.params = list(self.model.parameters())
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.counts = [torch.zeros(()) for _ in self.params]
        self.ids = torch.randint(0, 4096, (8, 256))
        self.targets = torch.randint(0, 4096, (8, 256))

    def step(self):
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(self.ids, self.targets)
        loss.backward()
        with torch.no_grad():
            grads = [p.grad for p in self.params]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, (1.0 / (norm + 1e-6)).clamp(max=1.0))
            torch._foreach_add_(self.counts, 1)
            torch._fused_adamw_(
                self.params, grads, self.first, self.second, [], self.counts,
                lr=3e-4, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False,
            )
            for p in self.params:
                p.grad = None
        return loss.item()

    def run(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        seconds = time.perf_counter() - start
        return {"tokens_per_s": steps * 8 * 256 / seconds, "loss": loss}


def answer(request):
    global model
    if request["op"] == "version":
        return {"version": torch.__version__, "threads": torch.get_num_threads()}
    if request["op"] == "gemm":
        return gemm(request["n"], request["dtype"], request["seconds"])
    if model is None:
        model = Trainer()
    return model.run(request["steps"])


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
