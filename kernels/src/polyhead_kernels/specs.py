"""The Triton kernels as data, apart from their modules, so that a registration imports no triton.

One ``KernelSpec`` an operator, listed in ``polyhead_kernels.plugin``. Its ``limits`` begin with
``polyhead_kernels.programs.limits``, which asks for triton and a GPU or the interpreter.
"""

from __future__ import annotations
