"""``python -m polyhead kernels list|explain|verify|compile|bench``: the command line that core has by itself."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyhead.errors import PolyheadError

if TYPE_CHECKING:
    from polyhead.ops.commands import Said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        said = _run(options)
    except PolyheadError as error:
        print(error, file=sys.stderr)  # noqa: T201  # this is the command line
        return 1
    print(json.dumps(said.data, indent=2) if options.json else said.text)  # noqa: T201
    return 0 if said.passed else 1


def _run(options: argparse.Namespace) -> Said:
    from polyhead.ops import commands  # imports torch, which --help does without

    if options.command == "list":
        return commands.list_kernels(options.op)
    if options.command == "explain":
        shape = commands.parse_shape(options.shape)
        return commands.explain_call(options.operator or options.op, shape, options.dtype, options.device, options.set)
    if options.command == "compile":
        return commands.compile_kernels(options.op, options.target, every=options.all, workers=options.workers)
    if options.command == "bench":
        return commands.bench_kernels(
            options.op,
            options.dtype or ["float32"],
            options.device,
            threads=options.threads,
            repeats=options.repeats,
            claims=not options.no_claims,
        )
    if options.self_test:
        return commands.break_kernels(options.op, options.kernel, options.device, changed=options.changed)
    return commands.verify_kernels(options.op, options.kernel, options.dtype, options.device, changed=options.changed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m polyhead", description="Polyhead's operators and kernels.")
    kernels = parser.add_subparsers(required=True).add_parser("kernels", help="operators and their kernels")
    commands = kernels.add_subparsers(dest="command", required=True)

    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("--json", action="store_true", help="print one JSON document")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--op", metavar="OP", help="one operator; all if not given")
    commands.add_parser("list", parents=[each, one], help="show operators, their forms and kernels")

    explain = commands.add_parser("explain", parents=[each], help="show which kernel serves a call, and why not others")
    which = explain.add_mutually_exclusive_group(required=True)
    which.add_argument("operator", nargs="?", metavar="OP", help="the operator")
    which.add_argument("--op", metavar="OP", help="the same, as an option")
    explain.add_argument("--shape", required=True, help="of the first tensor, such as 2,8,128,64")
    explain.add_argument("--dtype", default="float32", help="such as bfloat16 (default: float32)")
    explain.add_argument("--device", default="cpu", help="such as cuda; it need not be here (default: cpu)")
    explain.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what else is true of the call: causal=true"
    )

    verify = commands.add_parser("verify", parents=[each, one], help="hold kernels against the definition in float64")
    verify.add_argument("--kernel", metavar="KERNEL", help="one kernel; all if not given")
    verify.add_argument("--dtype", action="append", default=[], help="one dtype, may be repeated; all if not given")
    verify.add_argument("--device", default="cpu", help="where to run (default: cpu)")

    verify.add_argument(
        "--self-test", action="store_true", help="break the kernels on purpose and show that the cases notice"
    )
    verify.add_argument("--changed", action="store_true", help="only what has not passed with the same source before")

    build = commands.add_parser(
        "compile", parents=[each, one], help="build kernels for devices that need not be here, and read the binaries"
    )
    build.add_argument(
        "--target",
        action="append",
        default=[],
        help="one device family, such as sm_90, may be repeated; all if not given",
    )
    build.add_argument("--all", action="store_true", help="every configuration, not only the ones that are launched")
    build.add_argument("--workers", type=int, default=0, help="processes (default: one for each processor)")

    bench = commands.add_parser("bench", parents=[each, one], help="time kernels against a peer, correctness first")
    bench.add_argument("--dtype", action="append", default=[], help="may be repeated (default: float32)")
    bench.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    bench.add_argument("--threads", type=int, default=2, help="of torch, on a CPU (default: 2)")
    bench.add_argument("--repeats", type=int, default=9, help="runs of each side; times are medians (default: 9)")
    bench.add_argument("--no-claims", action="store_true", help="leave out the repository's own benchmarks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
