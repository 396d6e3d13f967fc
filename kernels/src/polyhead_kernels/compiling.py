"""Compile programs ahead of time for devices that need not be here, and read what the binaries say."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from polyhead.errors import KernelError
from polyhead.manifest import resolve
from polyhead.ops.builds import Build
from polyhead.ops.commands.cache import load, store
from polyhead_kernels.programs import Point, Program, interpreted

__all__ = ["build", "compile_points", "points_of"]


class Target(NamedTuple):
    """What Triton and the reader need to know of a device family."""

    backend: str
    arch: int | str
    warp: int
    shared_limit: int
    """Bytes of shared memory that one block may have."""
    matrix: tuple[str, ...]
    """The matrix units' instructions; one of them must occur where a product is to run there."""


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, ("HMMA",)),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, ("HGMMA", "HMMA")),
    "sm_100": Target("cuda", 100, 32, 227 * 1024, ("UTCHMMA", "UTCQMMA", "UTCOMMA", "HMMA")),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, ("v_mfma",)),
}
KERNEL = "triton"
"""What the kernels of this distribution are called in the registry."""
_WORTH_A_PROCESS = 3
"""Builds that take as long as a process that imports torch and triton."""
_READER = 1
"""Changes whenever this module reads binaries in another way, so that kept results are made anew."""
_MATRIX_SASS = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]MMA|DMMA)\b")
_SPILL_SASS = re.compile(r"\b(?:STL|LDL)\b")


def compile_points(points: Iterable[Point], workers: int = 0) -> list[Build]:
    """Build programs, several at once.

    Args:
        points: what to build.
        workers: processes; one for each processor if 0.

    Raises:
        KernelError: this process runs Triton's interpreter, which replaces the functions that would be compiled.
    """
    if interpreted():
        raise KernelError("TRITON_INTERPRET=1 is set, so nothing can be compiled. Unset it.")
    given = list(points)
    built = [_known(point) for point in given]
    missing = [point for point, found in zip(given, built, strict=True) if found is None]
    workers = min(workers or len(os.sched_getaffinity(0)), len(missing) // _WORTH_A_PROCESS)
    if workers < 2:
        fresh = iter([build(point) for point in missing])
    else:
        # Triton forks compilers of its own and holds locks while it does: a fork of this process could inherit one.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            fresh = iter(list(pool.map(build, missing, chunksize=2)))
    return [next(fresh) if found is None else found for found in built]


def build(point: Point) -> Build:
    """Compile one program; what does not compile is an error in the result.

    Raises:
        KernelError: the program and its function do not agree on the arguments.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    target, source = TARGETS[point.family], _source(point)
    expected = target.matrix if _on_matrix_units(point) else ()
    try:
        # When its assembler fails, Triton prints the whole program, which has no place in a JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            compiled = triton.compile(
                source,
                target=GPUTarget(target.backend, target.arch, target.warp),
                options={"num_warps": point.config.warps, "num_stages": point.config.stages},
            )
        read = _read_amd(compiled.asm["amdgcn"]) if target.backend == "hip" else _read_nvidia(compiled.asm["cubin"])
    except Exception as error:  # whatever a compiler raises is what there is to report
        said = [line for line in str(error).splitlines() if line.strip()] or [""]  # the reason stands last
        return Build(**_facts(point), shared_limit=target.shared_limit, error=f"{type(error).__name__}: {said[-1]}")
    read |= {"shared_bytes": int(compiled.metadata.shared), "shared_limit": target.shared_limit}
    read |= {"matrix_expected": expected}
    store("builds", _digest(point), read)
    return Build(**_facts(point) | read)


def _known(point: Point) -> Build | None:
    """Return what an earlier run has read of the same program, or None."""
    kept = load("builds", _digest(point))
    if kept is None:
        return None
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Build(**_facts(point) | read, cached=True)


def _facts(point: Point) -> dict[str, Any]:
    """Return what is known of a build before it is made."""
    return {
        "operator": point.program.operator,
        "kernel": KERNEL,
        "program": point.program.name,
        "target": point.family,
        "dtype": point.dtype,
        "constants": point.constants(),
        "warps": point.config.warps,
        "stages": point.config.stages,
        "default": point.default,
    }


def _source(point: Point) -> Any:
    from triton.compiler import ASTSource

    function = resolve(point.program.function)
    return ASTSource(function, *_arguments(function, point))


def _digest(point: Point) -> str:
    """Return a digest of everything that the result of a build depends on."""
    import triton

    facts = [_READER, triton.__version__, _source(point).hash(), TARGETS[point.family], _on_matrix_units(point)]
    text = json.dumps([*facts, point.config.warps, point.config.stages])
    return hashlib.sha256(text.encode()).hexdigest()


def _arguments(function: Any, point: Point) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[Any]]]:
    """Return the signature, the constants and the alignments of a point as Triton takes them.

    Raises:
        KernelError: the program does not say what an argument of its function is, or names one that there is not.
    """
    types, constants = point.signature(), point.constants()
    named = {**types, **constants}
    if set(named) != set(function.arg_names):
        wrong = ", ".join(sorted(set(named) ^ set(function.arg_names)))
        raise KernelError(
            f"Program {point.program.name} of {point.program.operator} and its function do not agree on {wrong}: "
            "each argument belongs into the signature, a variant or a configuration."
        )
    signature, aligned = {}, {}
    for at, name in enumerate(function.arg_names):
        text = "constexpr" if name in constants else types[name]
        kind, _, divisor = text.partition(":")
        signature[name] = kind
        if kind.startswith("*") or divisor == "16":
            aligned[at,] = [["tt.divisibility", 16]]
    return signature, constants, aligned


def _on_matrix_units(point: Point) -> bool:
    """Whether the program has a product in 16 bit or tf32, which must run on the matrix units."""
    program: Program = point.program
    if not program.product:
        return False
    reduced = program.precision is not None and point.variant.get(program.precision) == "tf32"
    return point.dtype in ("bfloat16", "float16") or reduced


def _read_nvidia(cubin: bytes) -> dict[str, Any]:
    """Return registers, spills and matrix instructions of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    registers = max((int(count) for count in re.findall(r"\bREG:(\d+)", usage)), default=0)
    return {
        "registers": registers,
        "spills": len(_SPILL_SASS.findall(code)),
        "matrix": tuple(sorted(set(_MATRIX_SASS.findall(code)))),
    }


def _read_amd(assembly: str) -> dict[str, Any]:
    """Return registers, spills and matrix instructions of the assembler text that the object is made of."""

    def metadata(name: str) -> int:
        return max((int(count) for count in re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

    return {
        "registers": metadata("vgpr_count"),
        "spills": metadata("vgpr_spill_count") + metadata("sgpr_spill_count"),
        "matrix": ("v_mfma",) if re.search(r"\bv_s?mfma[ci]?_", assembly) else (),
    }


def _tool(name: str, *arguments: str) -> str:
    command = [str(_binaries() / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def _binaries() -> Path:
    """Return the folder of the disassemblers that come with triton."""
    from triton.backends import nvidia

    return Path(next(iter(nvidia.__path__))) / "bin"


def points_of(programs: Sequence[Program], targets: Sequence[str], every: bool) -> Iterable[Point]:
    """Yield what is to be built of some programs."""
    for program in programs:
        for target in targets:
            yield from program.points(target, every=every)
