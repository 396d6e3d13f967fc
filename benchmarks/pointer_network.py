"""Pointer Network on the CPU against rl4co's: greedy tours, and the likelihood of given tours with its gradients.

    .venv/bin/python -m benchmarks.run pointer_network

Both have the same weights, 128 hidden units, no glimpse and no clipping of logits; both leave out the points visited
before. rl4co embeds its points first: with an embedding of orthonormal rows its network computes what ours does. Memory
is the growth of the resident set's peak during one call, in a process of its own.
"""

# /// script
# dependencies = ["rl4co==0.7.0"]
# ///

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare
from torch import Tensor, nn

from polyhead_combinatorics.decoding import allowed_tokens, beam_search
from polyhead_combinatorics.pointer_network import PointerNetwork, PointerNetworkConfig

DIM = 128
THREADS = 2
BATCH = {"greedy": 128, "likelihood": 32}  # of tours at once; the peer's gradients of more take minutes
CLAIMS = {"greedy": 3.0, "likelihood": 5.0}
SIZES = (50, 100)
GROWTH = (50, 100, 200)
TOLERANCE = 1e-9


class Ours:
    """Our network; weights are larger than fresh ones, so that no two points are equally probable."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: Any = PointerNetwork(PointerNetworkConfig(dim=DIM))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(4)

    def greedy(self, points: Tensor) -> Tensor:
        return beam_search(self.model, points, rule="tour").tokens[:, 0, : points.shape[1]] - 1

    def likelihood(self, points: Tensor, tours: Tensor) -> Tensor:
        target = nn.functional.pad(tours + 1, (0, 1))
        allowed = allowed_tokens(target, points.shape[1], rule="tour")
        return -self.model.nll(points, target, None, allowed).sum(1)


class Peer:
    """rl4co's policy without its environment, which would only add time."""

    def __init__(self, ours: Any) -> None:
        from rl4co.models.zoo.ptrnet import PointerNetworkPolicy

        policy = PointerNetworkPolicy(embed_dim=DIM, hidden_dim=DIM, tanh_clipping=0)
        self.model: Any = policy.to(torch.get_default_dtype())  # some of its parameters are always float32
        decoder = self.model.decoder
        decoder.num_glimpses = 0
        with torch.no_grad():
            rows = nn.init.orthogonal_(torch.empty(2, DIM))
            self.model.embedding.copy_(rows)
            self.model.decoder_in_0.copy_(ours.first @ rows)
            for cell, lstm, end in ((self.model.encoder.lstm, ours.encoder, "_l0"), (decoder.lstm, ours.decoder, "")):
                getattr(cell, f"weight_ih{end}").copy_(lstm.weight_ih_l0 @ rows)
                for name in ("weight_hh", "bias_ih", "bias_hh"):
                    getattr(cell, name + end).copy_(getattr(lstm, f"{name}_l0"))
            decoder.pointer.project_query.weight.copy_(ours.query.weight)
            decoder.pointer.project_ref.weight.copy_(ours.key.weight[..., None])
            for layer in (decoder.pointer.project_query, decoder.pointer.project_ref):
                layer.bias.zero_()
            decoder.pointer.v.copy_(ours.weight[0])

    def _run(self, points: Tensor, kind: str, tours: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, count, _ = points.shape
        # As the policy's forward embeds.
        embedded = torch.mm(points.transpose(0, 1).contiguous().view(-1, 2), self.model.embedding)
        result: tuple[Tensor, Tensor] = self.model._inner(embedded.view(count, batch, -1), kind, tours)
        return result

    def greedy(self, points: Tensor) -> Tensor:
        return self._run(points, "greedy", None)[1]

    def likelihood(self, points: Tensor, tours: Tensor) -> Tensor:
        return self._run(points, "greedy", tours)[0].sum(1)


def draw(count: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, count, 2, generator=generator), torch.rand(batch, count, generator=generator).argsort(1)


def call(side: Ours | Peer, what: str, count: int, batch: int = 0) -> Callable[[], Sequence[Tensor]]:
    """Return a function that decodes, or that gives the likelihood and the gradient of every parameter."""
    points, tours = draw(count, batch or BATCH[what])
    if what == "greedy":

        def decode() -> Sequence[Tensor]:
            with torch.no_grad():
                return [side.greedy(points)]

        return decode
    parameters = list(side.model.parameters())

    def teach() -> Sequence[Tensor]:
        likelihood = side.likelihood(points, tours)
        return [likelihood.detach(), *torch.autograd.grad(likelihood.sum(), parameters, allow_unused=True)]

    return teach


def check(count: int = 30, batch: int = 8) -> str:
    """Compare tours, likelihoods and gradients in float64.

    Raises:
        SystemExit: they differ.
    """
    torch.set_default_dtype(torch.float64)  # rl4co makes states of the default type
    ours = Ours()
    peer = Peer(ours.model)
    points, tours = draw(count, batch)
    with torch.no_grad():
        if not torch.equal(ours.greedy(points), peer.greedy(points)):
            raise SystemExit("greedy tours differ")
    pairs = []
    for side in (ours, peer):
        likelihood = side.likelihood(points, tours)
        likelihood.sum().backward()
        inner: Any = side.model if side is ours else side.model.decoder.pointer
        names = ("key", "weight") if side is ours else ("project_ref", "v")
        pairs.append((likelihood.detach(), getattr(inner, names[0]).weight.grad, getattr(inner, names[1]).grad))
    torch.set_default_dtype(torch.float32)
    worst = max(
        float((a.flatten() - b.flatten()).abs().max() / b.abs().max()) for a, b in zip(pairs[0], pairs[1], strict=True)
    )
    if worst > TOLERANCE:
        raise SystemExit(f"likelihoods or gradients differ by {worst:.1e} in float64")
    return f"the same tours; likelihoods and gradients in float64 differ by {worst:.0e} at most"


def peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit("The peak of memory is read from /proc/self/status, which is Linux's.")
    return int(found[1]) * 1024


def extra_mib(side: str, what: str, count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.pointer_network", "--memory", side, what, str(count)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_memory(name: str, what: str, count: int) -> None:
    ours = Ours()
    side = ours if name == "ours" else Peer(ours.model)
    call(side, what, 4, 2)()  # loads what is loaded at the first call
    run = call(side, what, count)
    before = peak()
    run()
    print((peak() - before) / 2**20)


def growth(ours: Ours, what: str) -> dict[str, Any]:
    """Return the exponent of our time from one size to the next."""
    times = []
    for count in GROWTH:
        run = call(ours, what, count)
        run()
        samples = []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            samples.append(time.perf_counter() - begin)
        times.append(min(samples))
    pairs = zip(GROWTH, GROWTH[1:], times, times[1:], strict=False)
    return {
        "points": GROWTH,
        "seconds": times,
        "exponents": [math.log(b / a) / math.log(larger / smaller) for smaller, larger, a, b in pairs],
    }


def main() -> None:
    """Print the document."""
    torch.set_num_threads(THREADS)
    if "--memory" in sys.argv:
        measure_memory(sys.argv[-3], sys.argv[-2], int(sys.argv[-1]))
        return
    correct = check()
    ours = Ours()
    peer = Peer(ours.model)
    rows = []
    for what, least in CLAIMS.items():
        for count in SIZES:
            times = compare(call(ours, what, count), call(peer, what, count), repeats=9, warmup=1)
            rows.append(
                {
                    "case": f"{what}{'' if what == 'greedy' else ', forward+backward'}, B{BATCH[what]} n{count} h{DIM}",
                    "peer": "rl4co 0.7.0",
                    "ours_s": times.ours_s,
                    "peer_s": times.peer_s,
                    "repeats": times.repeats,
                    "at_least": least,
                }
            )
        rows[-1] |= {f"{side}_mib": extra_mib(side, what, SIZES[-1]) for side in ("ours", "peer")}
    document = {
        "title": "Pointer Network",
        "threads": THREADS,
        "correct": correct,
        "rows": rows,
        "growth": {what: growth(ours, what) for what in CLAIMS},
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
