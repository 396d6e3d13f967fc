"""The pointer operators store neither the hidden layer of all pairs nor, for the loss, the logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own, so that the peak is that of these calls. It only grows, so each call shows what it adds.
PROGRAM = """
import json, re
import torch
from polyhead.ops import additive_attention_scores, pointer_nll

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)

def peak():
    # What getrusage tells begins with the peak of the process that started this one.
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM: *(\\d+) kB", status.read().replace("\\t", " "))[1]) * 1024 / 1e6

grown = {}
sizes = {"warm up": (1, 16, 16, 4), "scores": (16, 250, 250, 64), "loss": (1, 2000, 2000, 32)}
for name, (batch, m, n, d) in sizes.items():
    q, k = (torch.randn(batch, 1, x, d, generator=generator).requires_grad_() for x in (m, n))
    weight = torch.randn(1, d, generator=generator).requires_grad_()
    targets = torch.randint(n, (batch, 1, m), generator=generator)
    before = peak()
    if name != "loss":
        logits = additive_attention_scores(q, k, weight).logits
        logits.backward(torch.ones(()).expand_as(logits))
        assert q.grad.isfinite().all()
    if name != "scores":
        pointer_nll(q, k, weight, targets).nll.sum().backward()
        assert q.grad.isfinite().all()
    grown[name] = peak() - before
print(json.dumps(grown))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_memory_is_bounded() -> None:
    """Scores: twice their own size. Loss: half of what its logits alone would take."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    grown = json.loads(result.stdout)
    gradients = 2 * 16 * 250 * 64 * 4 / 1e6
    assert grown["scores"] - gradients < 2 * 16 * 250 * 250 * 4 / 1e6, grown
    assert grown["loss"] < 8, grown
