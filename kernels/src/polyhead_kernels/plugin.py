"""The plugin of the Triton kernels: which ones there are, as references; nothing here imports triton or torch."""

from __future__ import annotations

from typing import Any

from polyhead.hookspecs import hookimpl
from polyhead.manifest import Plugin, resolve

__all__ = ["KERNELS", "PROGRAMS", "polyhead_compile_kernels", "polyhead_plugin", "polyhead_register_kernels"]

KERNELS: tuple[str, ...] = (
    "polyhead_kernels.specs:ADDITIVE_ATTENTION_SCORES",
    "polyhead_kernels.specs:DECAY_ATTENTION",
    "polyhead_kernels.specs:DEFORMABLE_ATTENTION",
    "polyhead_kernels.specs:POINTER_NLL",
    "polyhead_kernels.specs:PREFIX_ATTENTION",
)
"""``"module:attribute"`` of every kernel's ``polyhead.ops.KernelSpec``."""
PROGRAMS: tuple[str, ...] = (
    "polyhead_kernels.additive_attention_scores:PROGRAMS",
    "polyhead_kernels.decay_attention:PROGRAMS",
    "polyhead_kernels.deformable_attention:PROGRAMS",
    "polyhead_kernels.pointer_nll:PROGRAMS",
    "polyhead_kernels.prefix_attention:PROGRAMS",
)
"""``"module:attribute"`` of every module's tuple of ``polyhead_kernels.programs.Program``, one file an operator."""


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest, so that `polyhead plugins` lists this distribution."""
    return Plugin(name="kernels", summary=f"Triton kernels for Polyhead's operators: {len(KERNELS) or 'none yet'}")


@hookimpl
def polyhead_register_kernels(registry: Any) -> None:
    """Add the kernels to the operator registry."""
    for reference in KERNELS:
        registry.register(resolve(reference))


@hookimpl
def polyhead_compile_kernels(
    operators: tuple[str, ...], targets: tuple[str, ...], every: bool, workers: int
) -> list[Any]:
    """Compile the programs of some operators for some device families, and return what was built."""
    from polyhead_kernels.compiling import compile_points, points_of

    programs = [program for reference in PROGRAMS for program in resolve(reference)]
    chosen = [program for program in programs if program.operator in operators]
    return compile_points(points_of(chosen, targets, every), workers)
