"""What is known of a kernel's program that was compiled ahead of time, read from the binary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Build"]


@dataclass(frozen=True)
class Build:
    """One program, compiled for one device family in one configuration."""

    operator: str
    kernel: str
    """The kernel that launches it, such as "triton"."""
    program: str
    """Such as "forward" or "backward_keys"."""
    target: str
    """The device family, such as "sm_90"."""
    dtype: str
    constants: Mapping[str, Any]
    """What it was compiled with: block sizes, flags, the precision of products."""
    warps: int
    stages: int
    default: bool
    """Whether a launch picks this configuration; the others are there for tuning."""
    registers: int = 0
    """Per thread."""
    spills: int = 0
    """NVIDIA: instructions that load from or store to spilled registers; AMD: registers spilled."""
    shared_bytes: int = 0
    """Shared memory of a block."""
    shared_limit: int = 0
    """What the device has for one block."""
    matrix: tuple[str, ...] = ()
    """The matrix units' instructions that occur, without their suffixes."""
    matrix_expected: tuple[str, ...] = ()
    """At least one of these must occur; empty where a program has no product that belongs on a matrix unit."""
    error: str = ""
    """Why it does not build."""
    cached: bool = field(default=False, compare=False)

    def problems(self) -> list[str]:
        """Return what is wrong with it, a sentence each.

        A configuration that is there for tuning may spill or be too large: tuning drops it.
        """
        if self.error:
            return [f"does not build: {self.error}"]
        found = []
        if self.default and self.spills:
            found.append(f"spills registers ({self.spills})")
        if self.default and self.shared_bytes > self.shared_limit:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, {self.target} has {self.shared_limit}")
        if self.matrix_expected and not set(self.matrix) & set(self.matrix_expected):
            found.append(f"has a matrix product, but none of {', '.join(self.matrix_expected)}")
        return found

    def data(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "constants": dict(self.constants), "problems": self.problems()}

    def __str__(self) -> str:
        """Return the program and how it was compiled."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        return (
            f"{self.operator}.{self.program} {self.target} {self.dtype} {constants} warps={self.warps} "
            f"stages={self.stages}"
        )
