"""What ``kernels list|explain|verify|compile|bench`` do: functions that return data and text, and print nothing."""

from polyhead.ops.commands.benching import bench_kernels
from polyhead.ops.commands.compiling import compile_kernels
from polyhead.ops.commands.listing import explain_call, list_kernels, parse_shape
from polyhead.ops.commands.said import Said
from polyhead.ops.commands.verifying import break_kernels, verify_kernels

__all__ = [
    "Said",
    "bench_kernels",
    "break_kernels",
    "compile_kernels",
    "explain_call",
    "list_kernels",
    "parse_shape",
    "verify_kernels",
]
