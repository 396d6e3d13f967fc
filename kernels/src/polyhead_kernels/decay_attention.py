"""Linear attention with decay in Triton: states between chunks in sequence, everything else chunk by chunk at once.

Forward, ``chunk_states`` walks along a sequence and leaves the state before every chunk; ``chunk_outputs`` computes the
chunks from them. Backward, ``chunk_state_gradients`` walks from the end and leaves the gradient of the state behind
every chunk; ``chunk_gradients`` and ``chunk_value_gradients`` do the rest. docs/operators/decay_attention.md has the
mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from polyhead.ops.call import name_of
from polyhead.ops.decay_attention.gradients import BACKWARD, FORWARD, differentiable
from polyhead.ops.decay_attention.strands import boundaries
from polyhead.ops.library import register
from polyhead_kernels.programs import Config, Constant, Program, interpreted

__all__ = ["PROGRAMS", "decay_attention"]

CHUNKS = {"float64": 32, "float32": 32, "bfloat16": 64, "float16": 64}
"""Tokens per chunk by dtype. Float32 without tf32 is multiplied out of registers, which 64 tokens would overflow."""
_CHUNK_INTERPRETED = 64
"""The interpreter's time goes by the number of programs."""
_HALF, _SINGLE = ("bfloat16", "float16"), ("float32",)


def _config(dtypes: tuple[str, ...], block_d: int, block_v: int, warps: int = 4, stages: int = 2) -> Config:
    constants = {"CHUNK": CHUNKS[dtypes[0]], "BLOCK_D": block_d, "BLOCK_V": block_v}
    return Config(constants, warps=warps, stages=stages, dtypes=dtypes)


# Chosen so that nothing spills: float16 is widened in products with states, and gfx942 keeps masks in scalar registers.
# All configurations of a dtype share the chunk, which is also the distance of the states that are kept.
_INTERPRET = (Config({"CHUNK": _CHUNK_INTERPRETED, "BLOCK_D": 16, "BLOCK_V": 16}),)
_WALK = {
    "default": (_config(_HALF, 64, 32), _config(_HALF, 32, 32), _config(_SINGLE, 64, 32, 8), _config(_SINGLE, 32, 32)),
    "sm_100": (_config(_HALF, 64, 32), _config(_HALF, 32, 32), _config(_SINGLE, 64, 32, 8, stages=1)),
    "gfx942": (_config(_HALF, 32, 32), _config(_SINGLE, 32, 32)),
    "interpret": _INTERPRET,
}
_EACH = {
    "default": (_config(_HALF, 64, 64), _config(_HALF, 64, 64, 8), _config(_SINGLE, 32, 32)),
    "interpret": _INTERPRET,
}
_BOTH = {
    "default": (
        _config(("bfloat16",), 64, 64, 8),
        _config(("float16",), 32, 32, 8),
        _config(("float16",), 32, 32),
        _config(_SINGLE, 32, 32, 8),
    ),
    "gfx942": (_config(_HALF, 64, 64), _config(_SINGLE, 32, 32)),
    "interpret": _INTERPRET,
}
_STRIDES = ("batch", "head", "token")
_SIZES = {"heads": "i32", "length": "i32", "head_dim": "i32:16", "value_dim": "i32:16"}
_DENSE: Mapping[str, Constant] = {"PACKED": False, "UNIT": 16}
_PACKED: Mapping[str, Constant] = {"PACKED": True, "UNIT": 1}


def _program(
    name: str,
    configs: Mapping[str, tuple[Config, ...]],
    read: str,
    pointers: Mapping[str, str],
    numbers: Mapping[str, str],
) -> Program:
    """Return a program that reads some of q, k, v and g, with ``pointers`` of its own and further numbers."""
    signature = {
        **dict.fromkeys(read, "*{dtype}"),
        "log_decay": "*{wide}",
        "sequences": "*i32",
        **pointers,
        **{f"{name}_{stride}": "i32" for name in read for stride in _STRIDES},
        **_SIZES,
        **numbers,
    }
    left_out: dict[str, Constant] = {name: None for name in ("sequences", "chunks") if name in signature}
    variants: list[dict[str, Constant]] = [
        {"BY_TOKEN": False, **_DENSE, **left_out},
        {"BY_TOKEN": True, **_DENSE, **left_out},
    ]
    variants += [{"BY_TOKEN": True, **_PACKED}]
    if "ddecay" in signature:
        variants = [{**variant, "DECAY_GRAD": True} for variant in variants]
        variants += [{"BY_TOKEN": False, **_DENSE, **left_out, "DECAY_GRAD": False, "ddecay": None}]
    return Program(
        operator="decay_attention",
        name=name,
        function=f"polyhead_kernels.decay_attention_programs:chunk_{name}",
        signature=signature,
        configs=configs,
        variants=tuple(variants),
        product=True,
        precision="PRECISION",
    )


STATES = _program(
    "states",
    _WALK,
    "kv",
    {"states": "*{wide}", "final": "*{wide}"},
    {},
)
OUTPUTS = _program(
    "outputs",
    _EACH,
    "qkv",
    {"chunks": "*i32", "states": "*{wide}", "output": "*{dtype}"},
    {"scale": "fp32"},
)
STATE_GRADIENTS = _program(
    "state_gradients",
    _WALK,
    "qg",
    {"gradients": "*{wide}", "initial": "*{wide}"},
    {"scale": "fp32"},
)
GRADIENTS = _program(
    "gradients",
    _BOTH,
    "qkvg",
    {"chunks": "*i32"}
    | dict.fromkeys(("states", "gradients"), "*{wide}")
    | dict.fromkeys(("dq", "dk"), "*{dtype}")
    | {"ddecay": "*{wide}"},
    {"tokens": "i32", "scale": "fp32"},
)
VALUE_GRADIENTS = _program(
    "value_gradients",
    _EACH,
    "qkg",
    {"chunks": "*i32", "gradients": "*{wide}", "dv": "*{dtype}"},
    {"scale": "fp32"},
)
PROGRAMS = (STATES, OUTPUTS, STATE_GRADIENTS, GRADIENTS, VALUE_GRADIENTS)


class _Work:
    """Sizes, chunks and strides of a call, and how its programs are launched."""

    def __init__(self, log_decay: Tensor, cu_seqlens: Tensor | None, scale: float, **inputs: Tensor) -> None:
        """Take the decays, (H,) or (B, H, S), and q, k, v and g, those that are read."""
        # Columns are read one behind the other.
        self.inputs = {name: x if x.stride(-1) == 1 else x.contiguous() for name, x in inputs.items()}
        self.q, v = self.inputs["q"], self.inputs["v"]
        self.batch, self.heads, self.length, self.head_dim = self.q.shape
        self.value_dim = v.shape[3]
        self.wide = _wide(self.q.dtype)
        self.chunk = _chunk_of(self.q.dtype)
        if cu_seqlens is None:
            self.sequences = self.batch
            self.chunks = self.batch * triton.cdiv(self.length, self.chunk)
            self.filled = self.length
            tables: list[Tensor | None] = [None, None]
        else:
            ends = boundaries(cu_seqlens, self.length)
            sequences: list[tuple[int, int, int]] = []
            chunks: list[tuple[int, int]] = []
            for i, (start, end) in enumerate(pairwise(ends)):
                sequences.append((start, end, len(chunks)))
                chunks += [(i, token) for token in range(start, end, self.chunk)]
            self.sequences, self.chunks, self.filled = len(sequences), len(chunks), ends[-1]
            tables = [torch.tensor(rows, dtype=torch.int32, device=self.q.device) for rows in (sequences, chunks)]
        strides = {name: _strides(x) for name, x in self.inputs.items()}
        unit = 1 if any(stride % 16 for each in strides.values() for stride in each) else 16
        self.arguments: dict[str, Any] = {
            **self.inputs,
            **{
                f"{name}_{axis}": stride // unit
                for name, each in strides.items()
                for axis, stride in zip(_STRIDES, each, strict=True)
            },
            "log_decay": log_decay.to(self.wide).contiguous(),
            "sequences": tables[0],
            "chunks": tables[1],
            "heads": self.heads,
            "length": self.length,
            "head_dim": self.head_dim,
            "value_dim": self.value_dim,
            "tokens": self.batch * self.heads * self.length,
            "scale": scale,
        }
        self.variant: dict[str, Constant] = {
            "BY_TOKEN": log_decay.ndim == 3,
            "PACKED": cu_seqlens is not None,
            "UNIT": unit,
        }

    def launch(self, program: Program, *axes: str, **pointers: Tensor | None) -> None:
        """Run a program for all heads of ``axes[0]``, and along the blocks of the widths that follow."""
        given = {name: x for name, x in (self.arguments | pointers).items() if name in program.signature}
        variant = dict(self.variant) | {name: None for name, x in given.items() if x is None}
        if "ddecay" in given:
            variant["DECAY_GRAD"] = given["ddecay"] is not None
        rows = self.heads * (self.chunks if axes[0] == "chunks" else self.sequences)
        blocks = {"BLOCK_D": self.head_dim, "BLOCK_V": self.value_dim}
        program.launch(
            lambda c: (rows, *(triton.cdiv(blocks[axis], c[axis]) for axis in axes[1:])),
            self.q,
            variant=variant,
            **given,
        )

    def empty(self, count: int) -> Tensor:
        """Return room for states, (count, H, D, Dv)."""
        size = (count, self.heads, self.head_dim, self.value_dim)
        return torch.empty(size, dtype=self.wide, device=self.q.device)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of states and sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk_of(dtype: torch.dtype) -> int:
    """Return the tokens per chunk."""
    return _CHUNK_INTERPRETED if interpreted() else CHUNKS[name_of(dtype)]


def _strides(x: Tensor) -> tuple[int, ...]:
    """Return the strides of (B, H, S, ·) but the last; 0 along an axis of one, whose stride may be any number."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True))


def _scaled(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Return q and what is left to multiply: a number reaches a Triton program in float32, too coarse for float64."""
    return (scale * q, 1.0) if q.dtype == torch.float64 else (q, scale)


def _most_chunks(q: Tensor, cu_seqlens: Tensor | None) -> Any:
    """Return the number of chunks; for packed sequences, the most there can be."""
    chunk = _chunk_of(q.dtype)
    if cu_seqlens is None:
        return q.shape[0] * ((q.shape[2] + chunk - 1) // chunk)
    return q.shape[2] // chunk + cu_seqlens.shape[0] - 1


def _run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, final state and, if kept for the backward pass, the states before all chunks."""
    most = _most_chunks(q, cu_seqlens)
    q, scale = _scaled(q, scale)
    work = _Work(log_decay, cu_seqlens, scale, q=q, k=k, v=v)
    output = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    output[:, :, work.filled :] = 0
    final = work.empty(work.sequences)
    final.zero_() if initial_state is None else final.copy_(initial_state)
    states = work.empty(most)
    work.launch(STATES, "sequences", "BLOCK_D", "BLOCK_V", states=states, final=final)
    work.launch(OUTPUTS, "chunks", "BLOCK_V", states=states, output=output)
    return output, final, states if keep else states.new_empty(0, *states.shape[1:])


def _run_backward(
    grad_output: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    cu_seqlens: Tensor | None,
    states: Tensor,
    scale: float,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_decay (empty if not asked for) and the initial state."""
    q, left = _scaled(q, scale)
    work = _Work(log_decay, cu_seqlens, left, q=q, k=k, v=v, g=grad_output)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    for x in (dq, dk, dv):
        x[:, :, work.filled :] = 0
    initial = work.empty(work.sequences)
    initial.copy_(grad_final)
    gradients = torch.empty_like(states)
    by_block = None
    if decay_grad:
        blocks = triton.cdiv(work.head_dim, 16)  # no block is narrower; those that are not written stay zero
        by_block = torch.zeros(blocks, *q.shape[:3], dtype=work.wide, device=q.device)
    work.launch(STATE_GRADIENTS, "sequences", "BLOCK_D", "BLOCK_V", gradients=gradients, initial=initial)
    work.launch(GRADIENTS, "chunks", "BLOCK_D", states=states, gradients=gradients, dq=dq, dk=dk, ddecay=by_block)
    work.launch(VALUE_GRADIENTS, "chunks", "BLOCK_V", gradients=gradients, dv=dv)
    if q.dtype == torch.float64:
        dq *= scale
    ddecay = torch.empty(0, dtype=torch.float64, device=q.device)
    if by_block is not None:
        # Over all tokens of a head, float32 would lose digits.
        sums = by_block.sum(0, dtype=torch.float64)
        sums = sums.sum((0, 2)) if log_decay.ndim == 1 else sums
        ddecay = sums.to(log_decay.dtype).masked_fill_(log_decay == -torch.inf, 0)
    return dq, dk, dv, ddecay, initial


def _fake_forward(
    q: Tensor,
    _k: Tensor,
    v: Tensor,
    _log_decay: Tensor,
    _initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    _scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state, wide = (q.shape[1], q.shape[3], v.shape[3]), _wide(q.dtype)
    return (
        q.new_empty(*q.shape[:3], v.shape[3]),
        q.new_empty(sequences, *state, dtype=wide),
        q.new_empty(_most_chunks(q, cu_seqlens) if keep else 0, *state, dtype=wide),
    )


def _fake_backward(
    _grad_output: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    _cu_seqlens: Tensor | None,
    _states: Tensor,
    _scale: float,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ddecay = log_decay.new_empty(log_decay.shape) if decay_grad else q.new_empty(0, dtype=torch.float64)
    dstate = q.new_empty(grad_final.shape, dtype=_wide(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), ddecay, dstate


decay_attention = differentiable(
    register(f"decay_attention_triton_forward{FORWARD}", _run_forward, _fake_forward),
    register(
        f"decay_attention_triton_backward{BACKWARD}",
        _run_backward,
        _fake_backward,
        backward_of="triton of decay_attention",
    ),
)
"""The chunked form on a GPU; takes the arguments as the public function validated them."""
