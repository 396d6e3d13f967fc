"""Batched beam search under rules: what comes out is a tour, a polygon or a list of triangles by construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from polyhead.errors import ConfigError
from polyhead_combinatorics.sequence_models import Decoder, State

__all__ = ["RULES", "Beams", "Rule", "allowed_tokens", "beam_search", "most_steps"]

Rule = Literal["free", "tour", "closed tour", "hull", "closed hull", "triangles"]
RULES: tuple[Rule, ...] = ("free", "tour", "closed tour", "hull", "closed hull", "triangles")
"""free: any token, until the end. tour: every point once. hull: at least three points, none twice. closed: the first
point is named again before the end, as in the released files. triangles: three ascending points at a time."""


class Beams(NamedTuple):
    """The best answers, best first."""

    tokens: Tensor
    """Int64, (B, K, M): 1-based points, then 0."""
    log_prob: Tensor
    """Shape (B, K): summed log-softmax of the masked logits; -inf where there are fewer answers than beams."""


@dataclass
class _Partial:
    """K partial answers of each input."""

    visited: Tensor
    """Bool, (B, K, n+1); column 0 stays False."""
    first: Tensor
    """Int64, (B, K): the first token."""
    last: Tensor
    """Int64, (B, K): the newest token."""
    ended: Tensor
    """Bool, (B, K): only the end may follow."""

    def follow(self, parent: Tensor, token: Tensor, step: int, rule: Rule) -> _Partial:
        """Return the partial answers that extend ``parent`` (B, K') by ``token`` (B, K'); nothing is written into."""
        visited = self.visited.gather(1, parent.unsqueeze(-1).expand(-1, -1, self.visited.shape[2]))
        first = token if step == 0 else self.first.gather(1, parent)
        ended = self.ended.gather(1, parent) | (token == 0)
        if rule.startswith("closed") and step > 0:
            ended = ended | (token == first)
        visited = visited.scatter(2, token.unsqueeze(-1), True)
        visited[..., 0] = False
        return _Partial(visited, first, token, ended)


def most_steps(rule: Rule, count: int) -> int:
    """Return how many tokens an answer for ``count`` points has at most, the end included.

    >>> most_steps("tour", 10), most_steps("triangles", 5)
    (11, 16)
    """
    if rule in ("triangles", "free"):
        return 3 * max(2 * count - 5, 1) + 1
    return count + 1 + rule.startswith("closed")


@torch.no_grad()
def allowed_tokens(target: Tensor, count: int, lengths: Tensor | None = None, *, rule: Rule) -> Tensor:
    """Return what a rule leaves at each step of known answers: for a loss over the same tokens as in decoding.

    Args:
        target: tokens, int64 (B, m): 1-based points, 0 the end, negative behind it.
        count: points of an input, the padded ones included.
        lengths: int64 (B,): how many points are real; all if None.
        rule: which tokens may follow, see ``RULES``.

    Returns:
        bool, (B, m, count+1), all False behind the end.

    >>> allowed_tokens(torch.tensor([[1, 3, 2, 0]]), 3, rule="tour")[0].int()
    tensor([[0, 1, 1, 1],
            [0, 0, 1, 1],
            [0, 0, 1, 0],
            [1, 0, 0, 0]], dtype=torch.int32)
    """
    batch, steps = target.shape
    real, exists, partial = _beginning(batch, count, lengths, target.device)
    parent = torch.zeros(batch, 1, dtype=torch.int64, device=target.device)
    found = []
    for step in range(steps):
        found.append(_allowed(partial, exists, real, rule, step, None)[:, 0])
        partial = partial.follow(parent, target[:, step : step + 1].clamp(min=0), step, rule)
    return torch.stack(found, 1) & (target >= 0).unsqueeze(-1)


@torch.no_grad()
def beam_search(
    model: Decoder,
    points: Tensor,
    lengths: Tensor | None = None,
    *,
    rule: Rule,
    beam: int = 1,
    last: Tensor | None = None,
) -> Beams:
    """Decode all inputs at once, all partial answers in one call of the model a step; ``beam=1`` is greedy.

    Args:
        model: gives logits step by step.
        points: shape (B, n, F).
        lengths: int64 (B,): how many points are real; all if None.
        rule: which tokens may follow, see ``RULES``.
        beam: answers kept for each input; answers compete by their summed log-probability, without normalisation.
        last: int64 (B,): the point that a tour ends at, 0 for any.

    Returns:
        Beams(tokens (B, K, M), log_prob (B, K)): M is ``most_steps`` of n, less where all end before.

    Raises:
        ConfigError: an unknown rule, or a beam below 1.

    Complexity: O(M · K · n · D) a batch row.
    """
    if rule not in RULES:
        raise ConfigError(f'No rule "{rule}" for decoding. All: {", ".join(RULES)}')
    if beam < 1:
        raise ConfigError(f"beam is {beam}: at least 1 answer has to be kept.")
    batch, count, _ = points.shape
    device = points.device
    real, exists, partial = _beginning(batch, count, lengths, device)
    memory, state = model.start(points, lengths)
    score = points.new_zeros(batch, 1)
    tokens = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
    chosen: Tensor | None = None
    steps = most_steps(rule, count)
    for step in range(steps):
        logits, state = model.step(memory, state, chosen)
        allowed = _allowed(partial, exists, real, rule, step, last)
        logits = logits.masked_fill(~allowed, -torch.inf)
        # A beam without an answer of its own has nothing it may choose, and log-softmax of nothing is NaN.
        gained = (score.unsqueeze(-1) + logits.log_softmax(-1)).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        kept = min(beam, gained.shape[1] * gained.shape[2])
        score, index = gained.flatten(1).topk(kept, dim=1)
        parent, chosen = index // (count + 1), index % (count + 1)
        partial = partial.follow(parent, chosen, step, rule)
        if kept > 1 or state.hidden.shape[1] > 1:
            state = State(*(x.gather(1, parent.unsqueeze(-1).expand(-1, -1, x.shape[2])) for x in state))
            tokens = tokens.gather(1, parent.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        tokens = torch.cat([tokens, chosen.unsqueeze(-1)], dim=2)
        if bool((partial.ended & (chosen == 0)).all()):
            break
    # Behind the last answer there is none, whatever was gathered on the way.
    return Beams(tokens.masked_fill((score == -torch.inf).unsqueeze(-1), 0), score)


def _beginning(batch: int, count: int, lengths: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor, _Partial]:
    """Return how many points are real (B,), which tokens exist (B, n+1), and the one empty answer of each input."""
    real = torch.full((batch,), count, device=device) if lengths is None else lengths
    exists = torch.arange(count + 1, device=device) <= real[:, None]
    zero = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    return real, exists, _Partial(exists.new_zeros(batch, 1, count + 1), zero, zero, zero > 0)


def _allowed(partial: _Partial, exists: Tensor, real: Tensor, rule: Rule, step: int, last: Tensor | None) -> Tensor:
    """Return which tokens may follow, bool (B, K, n+1)."""
    exists = exists.unsqueeze(1)
    index = torch.arange(exists.shape[2], device=exists.device)
    end = index == 0
    ended = partial.ended.unsqueeze(-1)
    most = step < 3 * (2 * real[:, None, None] - 5).clamp(min=1)
    if rule == "free":
        return torch.where(ended | ~most, end, exists | end)
    fresh = exists & ~partial.visited & ~end
    if rule == "triangles":
        place = step % 3
        # Room is left for the points that are to follow in this triangle; the last step can only be the end.
        room = index <= (real[:, None, None] - (2 - place))
        after = index > (partial.last.unsqueeze(-1) if place else 0)
        open_ended = end if place == 0 and step else ~exists & end
        return torch.where(ended | ~most, end, (exists & room & after & ~end) | open_ended)
    if rule in ("tour", "closed tour"):
        left = fresh.any(-1, keepdim=True)
        if last is not None:
            held = (index == last[:, None, None]) & ~end
            fresh = torch.where((fresh & ~held).any(-1, keepdim=True), fresh & ~held, fresh)
        after = end if rule == "tour" else index == partial.first.unsqueeze(-1)
        return torch.where(ended, end, torch.where(left, fresh, after))
    if step < 3:
        return torch.where(ended, end, fresh)
    closing = index == partial.first.unsqueeze(-1) if rule == "closed hull" else end
    return torch.where(ended, end, fresh | end | closing)
