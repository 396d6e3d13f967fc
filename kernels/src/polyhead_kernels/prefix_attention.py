"""Attention over prefixes in Triton: chunk by chunk at once, but for a walk over the means at the ends of chunks.

Forward, ``chunk_logits``, a scan of the logits by torch, ``chunk_sums``, ``chunk_walk`` and ``chunk_outputs``.
Backward, ``chunk_gradient_sums``, ``chunk_walk`` from the end and ``chunk_gradients``.
docs/operators/prefix_attention.md has the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from polyhead.ops.call import name_of
from polyhead.ops.library import register
from polyhead.ops.prefix_attention.gradients import BACKWARD, FORWARD, differentiable
from polyhead.ops.prefix_attention.state import log_sums, wide_dtype
from polyhead_kernels.programs import Config, Constant, Program, interpreted

__all__ = ["PROGRAMS", "prefix_attention"]

CHUNKS = {"float64": 32, "float32": 32, "bfloat16": 64, "float16": 64}
"""Tokens per chunk by dtype. Float32 without tf32 is multiplied out of registers, which 64 tokens would overflow."""
_HALF, _SINGLE = ("bfloat16", "float16"), ("float32",)
_STRIDES = ("batch", "head", "token")


def _configs(half: int, single: int) -> dict[str, tuple[Config, ...]]:
    def config(dtypes: tuple[str, ...], block: int, warps: int = 4) -> Config:
        return Config({"CHUNK": CHUNKS[dtypes[0]], "BLOCK_D": block, "BLOCK_V": block}, warps=warps, dtypes=dtypes)

    # All configurations of a dtype share the chunk, which is also the distance of the means that are kept.
    return {
        "default": (config(_HALF, half), config(_HALF, half, 8), config(_SINGLE, single), config(_SINGLE, single, 8)),
        # It keeps masks in scalar registers, which wider tiles, or fewer warps, spill.
        "gfx942": (config(_HALF, 32, 8), config(_HALF, 32), config(_SINGLE, single), config(_SINGLE, single, 8)),
        "interpret": (Config({"CHUNK": 32, "BLOCK_D": 16, "BLOCK_V": 16}),),
    }


def _only(configs: Mapping[str, tuple[Config, ...]], *names: str) -> dict[str, tuple[Config, ...]]:
    """Return the configurations with these constants only."""
    return {
        family: tuple(
            Config({name: each.constants[name] for name in names}, each.warps, each.stages, each.dtypes)
            for each in choices
        )
        for family, choices in configs.items()
    }


def _program(
    name: str,
    read: str,
    pointers: Mapping[str, str],
    sizes: tuple[str, ...],
    blocks: tuple[str, ...],
    product: bool = False,
) -> Program:
    """Return a program that reads some of q, k, v and g, with further pointers and numbers."""
    signature = {
        **{x: "*{wide}" if x == "q" else "*{dtype}" for x in read},
        **pointers,
        **{f"{x}_{stride}": "i32" for x in read if x != "q" for stride in _STRIDES},
        **{size: "i32:16" if size.endswith("dim") else "i32" for size in sizes},
    }
    variants: tuple[Mapping[str, Constant], ...] = ({"UNIT": 16},)
    if "key_mask" in pointers:
        variants = ({"UNIT": 16}, {"UNIT": 16, "key_mask": None})
    return Program(
        operator="prefix_attention",
        name=name,
        function=f"polyhead_kernels.prefix_attention_programs:chunk_{name}",
        signature=signature,
        configs=_only(_configs(64, 32), "CHUNK", *blocks),
        variants=variants,
        product=product,
        precision="PRECISION" if product else None,
    )


_WIDE = "*{wide}"
_VALUES, _BOTH = ("heads", "length", "value_dim"), ("heads", "length", "head_dim", "value_dim")
LOGITS = _program("logits", "qk", {"key_mask": "*u8", "logits": _WIDE}, ("heads", "length", "head_dim"), ("BLOCK_D",))
SUMS = _program("sums", "v", {"tokens": _WIDE, "means": _WIDE}, _VALUES, ("BLOCK_V",))
WALK = Program(
    operator="prefix_attention",
    name="walk",
    function="polyhead_kernels.prefix_attention_programs:chunk_walk",
    signature={"carried": _WIDE, "kept": _WIDE, "chunks": "i32", "width": "i32"},
    configs={"default": (Config({"BLOCK": 64}, warps=2),), "interpret": (Config({"BLOCK": 16}),)},
    variants=({"REVERSE": False}, {"REVERSE": True}),
)
OUTPUTS = _program(
    "outputs",
    "v",
    {**dict.fromkeys(("tokens", "prefixes", "entering", "means"), _WIDE), "output": "*{dtype}"},
    _VALUES,
    ("BLOCK_V",),
    product=True,
)
GRADIENT_SUMS = _program(
    "gradient_sums",
    "vg",
    dict.fromkeys(("tokens", "prefixes", "entering", "means", "dlogits", "carried"), _WIDE),
    _VALUES,
    ("BLOCK_V",),
    product=True,
)
GRADIENTS = _program(
    "gradients",
    "qkvg",
    {
        **dict.fromkeys(("tokens", "prefixes", "dlogits", "carried"), _WIDE),
        **dict.fromkeys(("dk", "dv"), "*{dtype}"),
        "dq": _WIDE,
    },
    _BOTH,
    ("BLOCK_D", "BLOCK_V"),
    product=True,
)
PROGRAMS = (LOGITS, SUMS, WALK, OUTPUTS, GRADIENT_SUMS, GRADIENTS)


class _Measures(NamedTuple):
    """Log weights of tokens and prefixes, each in the measure of its chunk's last prefix."""

    tokens: Tensor
    """(B, H, S): at most 0; −∞ where a key is masked."""
    prefixes: Tensor
    """(B, H, S): at most 0; ∞ where the prefix is empty."""
    entering: Tensor
    """(B, H, S): what came before the chunk weighs in each prefix; no logarithm."""
    kept: Tensor
    """(B, H, chunks): what came before a chunk weighs in its last prefix; no logarithm."""

    @classmethod
    def of(cls, logits: Tensor, marks: Tensor, chunk: int) -> _Measures:
        """Subtract in float64; ``marks`` (B, H, S + 1) begins with the log weight of the initial state."""
        length, wide = logits.shape[-1], logits.dtype
        chunks = triton.cdiv(length, chunk)
        last = torch.arange(1, chunks + 1, device=logits.device).mul_(chunk).clamp_(max=length)
        of_token = torch.arange(length, device=logits.device) // chunk
        below = marks.masked_fill(marks == -torch.inf, torch.inf)
        starts, ends = marks[..., :-1:chunk][..., :chunks], marks[..., last]
        ends = ends.masked_fill(ends == -torch.inf, 0)[..., of_token]
        prefixes = below[..., 1:]
        return cls(
            (logits.double() - ends).to(wide),
            (prefixes - ends).to(wide),
            (starts[..., of_token] - prefixes).exp().to(wide),
            (starts - below[..., last]).exp().to(wide),
        )


class _Work:
    """Sizes and strides of a call, and how its programs are launched."""

    def __init__(self, q: Tensor, scale: float, **inputs: Tensor) -> None:
        """Take q (B, H, D) in the wide dtype, and k, v and g."""
        # Columns are read one behind the other.
        inputs = {name: x if x.stride(-1) == 1 else x.contiguous() for name, x in inputs.items()}
        self.k = inputs["k"]
        self.batch, self.heads, self.length, self.head_dim = self.k.shape
        self.value_dim = inputs["v"].shape[3]
        self.chunk = _chunk_of(self.k.dtype)
        self.chunks = triton.cdiv(self.length, self.chunk)
        strides = {
            name: [step if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)]
            for name, x in inputs.items()
        }
        unit = 1 if any(step % 16 for each in strides.values() for step in each) else 16
        self.variant: dict[str, Constant] = {"UNIT": unit}
        self.arguments: dict[str, Any] = {
            **inputs,
            **{
                f"{name}_{axis}": step // unit
                for name, each in strides.items()
                for axis, step in zip(_STRIDES, each, strict=True)
            },
            "q": (scale * q).contiguous(),
            "heads": self.heads,
            "length": self.length,
            "head_dim": self.head_dim,
            "value_dim": self.value_dim,
        }

    def launch(self, program: Program, *, blocks: bool = False, **pointers: Tensor | None) -> None:
        """Run a program for all chunks of all rows, ``blocks`` of values apart."""
        given = {name: x for name, x in (self.arguments | pointers).items() if name in program.signature}
        variant = self.variant | {name: None for name, x in given.items() if x is None}
        count = self.batch * self.heads * self.chunks
        program.launch(
            lambda c: (count, triton.cdiv(self.value_dim, c["BLOCK_V"])) if blocks else (count,),
            self.k,
            variant=variant,
            **given,
        )

    def walk(self, carried: Tensor, kept: Tensor, *, reverse: bool) -> None:
        """Carry (B, H, chunks + 1, width) on from the first or the last place."""
        rows, width = self.batch * self.heads, carried.shape[-1]
        WALK.launch(
            lambda c: (rows, triton.cdiv(width, c["BLOCK"])),
            self.k,
            variant={"REVERSE": reverse},
            carried=carried,
            kept=kept,
            chunks=self.chunks,
            width=width,
        )


def _chunk_of(dtype: torch.dtype) -> int:
    """Return the tokens per chunk."""
    return 32 if interpreted() else CHUNKS[name_of(dtype)]


def _means_shape(v: Tensor) -> tuple[Any, ...]:
    chunk = _chunk_of(v.dtype)
    return *v.shape[:2], (v.shape[2] + chunk - 1) // chunk + 1, v.shape[3]


def _run_forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what ``FORWARD`` says; means are those before every chunk and behind the last, the first one is w."""
    wide = wide_dtype(v.dtype)
    work = _Work(q, scale, k=k, v=v)
    output = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    logits = torch.empty(k.shape[:3], dtype=wide, device=v.device)
    means = torch.empty(_means_shape(v), dtype=wide, device=v.device)
    means[:, :, 0] = w
    mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
    work.launch(LOGITS, logits=logits, key_mask=mask)
    marks = log_sums(logits, m, u)
    if not work.length:
        return output, m.clone(), u.clone(), w.clone(), logits, marks[..., 1:].contiguous(), means
    measures = _Measures.of(logits, marks, work.chunk)
    work.launch(SUMS, blocks=True, tokens=measures.tokens, means=means)
    work.walk(means, measures.kept, reverse=False)
    given = measures._asdict()
    del given["kept"]
    work.launch(OUTPUTS, blocks=True, means=means, output=output, **given)
    last_m = torch.maximum(m, logits.amax(-1))
    last_u = _last_weight(marks, last_m).to(wide)
    last_w = last_u.unsqueeze(-1) * means[:, :, -1]
    return output, last_m, last_u, last_w, logits, marks[..., 1:].contiguous(), means


def _last_weight(marks: Tensor, m: Tensor) -> Tensor:
    """Return the last prefix's denominator in the measure of m; 0 if it is empty."""
    last = marks[..., -1]
    return torch.where(last == -torch.inf, last, last - m).exp()


def _run_backward(
    grad_output: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _key_mask: Tensor | None,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    last_m: Tensor,
    logits: Tensor,
    sums: Tensor,
    means: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the initial m, u and w."""
    work = _Work(q, scale, k=k, v=v, g=grad_output)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    behind = torch.cat([grad_w, -grad_u.unsqueeze(-1)], -1)
    if not work.length:
        return torch.zeros_like(q), dk, dv, torch.zeros_like(m), grad_u.clone(), grad_w.clone()
    marks = torch.cat([m.double().unsqueeze(-1), sums], -1)
    measures = _Measures.of(logits, marks, work.chunk)
    carried = torch.empty(*means.shape[:3], means.shape[3] + 1, dtype=means.dtype, device=means.device)
    carried[:, :, -1] = behind * _last_weight(marks, last_m).to(behind.dtype).unsqueeze(-1)
    dlogits = torch.empty_like(logits)
    by_chunk = torch.empty(*k.shape[:2], work.chunks, work.head_dim, dtype=means.dtype, device=means.device)
    given = measures._asdict()
    kept = given.pop("kept")
    work.launch(GRADIENT_SUMS, means=means, dlogits=dlogits, carried=carried, **given)
    work.walk(carried, kept, reverse=True)
    work.launch(GRADIENTS, dlogits=dlogits, carried=carried, dk=dk, dv=dv, dq=by_chunk, **given)
    dq = (scale * by_chunk.sum(2, dtype=torch.float64)).to(q.dtype)  # over all tokens, float32 would lose digits
    dw, du = carried[:, :, 0, :-1].contiguous(), -carried[:, :, 0, -1]
    return dq, dk, dv, (dw * w).sum(-1) + du * u, du, dw


def _fake_forward(
    _q: Tensor, k: Tensor, v: Tensor, _key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, _scale: float
) -> tuple[Tensor, ...]:
    wide = wide_dtype(v.dtype)
    logits = v.new_empty(k.shape[:3], dtype=wide)
    sums = v.new_empty(k.shape[:3], dtype=torch.float64)
    state = (x.new_empty(x.shape) for x in (m, u, w))
    return v.new_empty(v.shape), *state, logits, sums, v.new_empty(_means_shape(v), dtype=wide)


def _fake_backward(
    _grad_output: Tensor,
    _grad_u: Tensor,
    _grad_w: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _key_mask: Tensor | None,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    *_rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, m, u, w))


prefix_attention = differentiable(
    register(f"prefix_attention_triton_forward{FORWARD}", _run_forward, _fake_forward),
    register(
        f"prefix_attention_triton_backward{BACKWARD}",
        _run_backward,
        _fake_backward,
        backward_of="triton of prefix_attention",
    ),
)
"""The chunked form on a GPU; takes the arguments as the public function validated them."""
