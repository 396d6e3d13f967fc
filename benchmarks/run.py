"""Run the benchmarks, each in its own process, and print what they measured.

    .venv/bin/python -m benchmarks.run [NAME ...] [--list]

README.md in this folder says what a benchmark prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts.machine import machine, versions

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
RESULTS = ROOT / "docs" / "results"
NOT_BENCHMARKS = {"run", "timing"}
_METADATA = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


class Roofline(NamedTuple):
    """What this machine reaches, measured with torch."""

    flops_per_s: float
    bytes_per_s: float

    def bound_s(self, flops: float, count: float) -> float:
        """Return the least time for an amount of arithmetic and of memory traffic."""
        return max(flops / self.flops_per_s, count / self.bytes_per_s)


def names() -> list[str]:
    """Return the benchmarks of this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in files if path.stem not in NOT_BENCHMARKS and not path.stem.startswith("_")]


def peers(source: str) -> list[str]:
    """Return the dependencies in a file's inline script metadata (PEP 723).

    >>> peers('# /// script\\n# dependencies = ["einops>=0.8"]\\n# ///\\n')
    ['einops>=0.8']
    """
    match = _METADATA.search(source)
    if match is None:
        return []
    lines = [line.removeprefix("#").removeprefix(" ") for line in match["content"].splitlines()]
    return list(tomllib.loads("\n".join(lines)).get("dependencies", []))


def environment(needs: Sequence[str], install: Callable[..., int] = subprocess.call) -> Path:
    """Return the Python for a list of peers, made on first use; it sees this environment's packages too."""
    if not needs:
        return Path(sys.executable)
    folder = BUILD / f"environment-{hashlib.sha256(json.dumps(sorted(needs)).encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making {folder.relative_to(ROOT)} for {', '.join(needs)}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        # Read as a site directory, so that the editable installations' own path files count as well.
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (site / "workspace.pth").write_text(line, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *needs]
        if install(command, stdin=subprocess.DEVNULL):
            raise SystemExit(f"The peers cannot be installed: {' '.join(command)}")
        (folder / "complete").touch()
    return python


def measure_roofline(threads: int) -> Roofline:
    """Return the best of several float32 matrix products and of several copies past every cache."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.rand(1536, 1536), torch.rand(1536, 1536)
        big, target = torch.rand(2**25), torch.empty(2**25)
        product = min(_time(lambda: torch.mm(a, b)) for _ in range(7))
        copy = min(_time(lambda: target.copy_(big)) for _ in range(7))
    finally:
        torch.set_num_threads(before)
    return Roofline(2 * 1536**3 / product, 2 * 4 * 2**25 / copy)


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run(name: str) -> dict[str, Any]:
    """Run one benchmark and return its document. Raises SystemExit with what went wrong."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    command = [str(environment(peers(source))), "-m", f"benchmarks.{name}"]
    result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{name}: failed, exit {result.returncode}; no figure of it counts")
    try:
        return json.loads(result.stdout)
    except ValueError:
        raise SystemExit(f"{name}: its output is no JSON document: {result.stdout[-300:]!r}") from None


def table(document: Mapping[str, Any], roofline: Roofline) -> list[str]:
    """Return the lines that a person reads; "!" marks a ratio below the one that is claimed."""
    lines = [f"{document['title']}  ({document['threads']} threads; {document['correct']})"]
    lines.append(f"  {'case':<44} {'peer':<18} {'ours':>10} {'peer':>10} {'ratio':>8} {'claimed':>8} {'roofline':>9}")
    for row in document["rows"]:
        ratio = row["peer_s"] / row["ours_s"]
        bar = row.get("at_least")
        claimed = "" if bar is None else f"{'!' if ratio < bar else ''}{bar:.2f}"
        share = ""
        if "flops" in row and "bytes" in row:
            share = f"{100 * roofline.bound_s(row['flops'], row['bytes']) / row['ours_s']:.0f} %"
        lines.append(
            f"  {row['case']:<44} {row['peer']:<18} {_ms(row['ours_s'])} {_ms(row['peer_s'])} {ratio:>8.2f} "
            f"{claimed:>8} {share:>9}".rstrip()
        )
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>7.3g} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="benchmarks; all if none is given")
    parser.add_argument("--list", action="store_true", help="name the benchmarks and their peers, run nothing")
    options = parser.parse_args(arguments)
    known = names()
    if unknown := sorted(set(options.names) - set(known)):
        print(f"No benchmark {', '.join(unknown)}.  All: {', '.join(known) or 'none'}", file=sys.stderr)
        return 1
    chosen = options.names or known
    if options.list:
        for name in chosen:
            needs = peers(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
            print(f"{name}{f' with {needs}' if needs else ''}")
        return 0
    here, installed = machine(), versions()
    print(f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB; torch {installed['torch']}")
    rooflines: dict[int, Roofline] = {}
    failed = False
    for name in chosen:
        try:
            document = run(name)
        except SystemExit as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        threads = document["threads"]
        if threads not in rooflines:
            rooflines[threads] = measure_roofline(threads)
            gflops, gbytes = (figure / 1e9 for figure in rooflines[threads])
            print(f"roofline of {threads} threads: {gflops:.0f} GFLOP/s, {gbytes:.1f} GB/s")
        print("", *table(document, rooflines[threads]), sep="\n", flush=True)
        record = {**document, "machine": here, "versions": installed, "roofline": rooflines[threads]._asdict()}
        BUILD.mkdir(parents=True, exist_ok=True)
        (BUILD / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(BUILD / f"{name}.json", RESULTS / f"bench-{name}.json")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
