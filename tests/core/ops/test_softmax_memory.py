"""softmax_attention keeps its memory linear where PyTorch's SDPA would store all logits on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys

N = 12_000
BOUND_MB = 100
"""One head's logits take 576 MB in float32, and SDPA's fallback holds two such tensors."""

# In a process of its own, so that the peak is that of these calls. It only grows, so each call shows what it adds.
PROGRAM = """
import json, resource, sys
import torch
from polyhead.ops import softmax_attention

torch.set_num_threads(1)
N = int(sys.argv[1])
generator = torch.Generator().manual_seed(0)

def draw(length, dim):
    return torch.randn(1, 1, length, dim, generator=generator)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

calls = {
    "warm up": (draw(8, 4), draw(8, 4), draw(8, 2), {"mask": torch.ones(8, dtype=torch.bool)}),
    "values narrower than keys": (draw(N, 8), draw(N, 8), draw(N, 4), {}),
    "values wider than keys, any scale": (draw(N, 4), draw(N, 4), draw(N, 8), {"scale": -1.7}),
    "last dimension not contiguous": (draw(8, N).mT, draw(8, N).mT, draw(8, N).mT, {}),
    "causal, more keys than queries": (draw(N - 1000, 8), draw(N, 8), draw(N, 4), {"causal": True, "scale": 2.0}),
    "padded keys": (draw(N, 8), draw(N, 8), draw(N, 4), {"mask": torch.arange(N) < N - 77}),
}
grown = {}
for name, (q, k, v, arguments) in calls.items():
    before = peak()
    grad = name in ("warm up", "values narrower than keys")
    q, k, v = (x.requires_grad_(grad) for x in (q, k, v))
    output = softmax_attention(q, k, v, **arguments).output
    assert output.isfinite().all()
    if grad:
        output.sum().backward()
        assert q.grad.isfinite().all()
    grown[name] = peak() - before
del grown["warm up"]
print(json.dumps(grown))
"""


def test_memory_is_bounded() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM, str(N)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    grown = json.loads(result.stdout)
    assert len(grown) == 5
    assert max(grown.values()) < BOUND_MB, grown
