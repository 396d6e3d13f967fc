"""Which kernel serves a call, what forces one, and what is said when none can."""

from __future__ import annotations

import re
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyhead import plugins
from polyhead.errors import ConfigError, KernelError, ShapeError, UnknownNameError
from polyhead.hookspecs import hookimpl
from polyhead.ops import (
    Call,
    KernelSpec,
    Registry,
    SlowKernelWarning,
    TensorInfo,
    explain,
    registry,
    softmax_attention,
    use_kernel,
)
from polyhead.ops.choice import forced


def spec(name: str, priority: int, **changes: Any) -> KernelSpec:
    return KernelSpec("running_sum", name, "tests_running_sum:reference", priority=priority, **changes)


def call(length: int = 64, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Call:
    return Call("running_sum", {"x": TensorInfo((2, length), dtype, torch.device(device))}, {"gain": 1.0}, length)


def attend(**arguments: Any) -> str:
    """Return the name of the kernel that softmax_attention takes."""
    x = TensorInfo((1, 1, 2, 4), torch.float32, torch.device("cpu"))
    options = {"causal": False, "scale": 1.0, "heads": None}
    return registry.select(Call("softmax_attention", {"q": x, "k": x, "v": x}, options | arguments, 2)).name


def test_operators_load_when_they_are_asked_for(fresh: Registry, module: types.ModuleType) -> None:
    assert fresh.operators() == ("running_sum",)
    assert not fresh._specs
    assert fresh.operator("running_sum").summary == "sum of all up to here"
    with pytest.raises(
        UnknownNameError, match=r'No operator "running_sun". Did you mean "running_sum"\?  All: python -m'
    ):
        fresh.operator("running_sun")
    with pytest.raises(UnknownNameError, match='No operator "sum"'):
        fresh.kernels("sum")


def test_the_highest_priority_that_supports_the_call(fresh: Registry) -> None:
    fresh.register(spec("half", 30, dtypes=("float16",)))
    fresh.register(spec("fast", 20, wins_from=100))
    assert [kernel.name for kernel in fresh.kernels("running_sum")] == ["half", "fast", "reference"]
    assert fresh.select(call()).name == "reference"
    assert fresh.select(call(100)).name == "fast"
    assert fresh.select(call(dtype=torch.float16)).name == "half"


def test_a_kernel_says_all_its_reasons(fresh: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = spec(
        "triton",
        20,
        devices=("cuda",),
        dtypes=("float16", "bfloat16", "float32"),
        limits=lambda call: ["head_dim is 24 (needs a power of two)", f"length is {call.length} (needs 128)"],
    )
    reasons = [
        "device is cpu (needs cuda)",
        "dtype is float64 (needs float16, bfloat16, float32)",
        "head_dim is 24 (needs a power of two)",
        "length is 64 (needs 128)",
    ]
    assert kernel.supports(call(dtype=torch.float64)) == reasons
    fresh.register(kernel)
    text = 'Kernel "triton" cannot run running_sum on this call: ' + "; ".join(reasons)
    assert fresh.select(call()).name == "reference"
    explanation = fresh.explain(call(dtype=torch.float64))
    assert explanation.chosen == "reference"
    assert explanation.rejected == {"triton": tuple(reasons)}
    assert str(explanation).splitlines() == [
        "running_sum: x (2, 64), dtype float64, device cpu, gain=1.0",
        "  chosen: reference",
        f"  triton: {'; '.join(reasons)}",
    ]
    monkeypatch.setattr("polyhead.ops.selection.forced", lambda operator: "triton")
    with pytest.raises(KernelError, match=re.escape(text)):
        fresh.select(call(dtype=torch.float64))
    forced_one = fresh.explain(call(dtype=torch.float64))
    assert forced_one.chosen is None
    assert forced_one.rejected["reference"] == ('"triton" is forced',)
    assert "  chosen: none, an error" in str(forced_one)


def test_no_kernel_at_all(fresh: Registry, module: Any) -> None:
    object.__setattr__(module.SPEC, "kernels", (spec("a", 1, devices=("cuda",)), spec("b", 2, dtypes=("float16",))))
    with pytest.raises(KernelError) as caught:
        fresh.select(call())
    assert str(caught.value).splitlines() == [
        "No kernel can run running_sum on this call: x (2, 64), dtype float32, device cpu, gain=1.0.",
        "  b: dtype is float32 (needs float16)",
        "  a: device is cpu (needs cuda)",
    ]
    assert fresh.explain(call()).chosen is None


def test_explain_names_lengths_and_lower_priorities(fresh: Registry) -> None:
    fresh.register(spec("fast", 20, wins_from=100))
    assert fresh.explain(call()).rejected == {"fast": ("length is 64 (wins from 100)",)}
    assert fresh.explain(call(100)).rejected == {"reference": ()}
    assert "  reference: can serve, has lower priority" in str(fresh.explain(call(100)))


def test_a_slow_path_warns_once_per_cause(fresh: Registry, module: Any) -> None:
    slow = spec("reference", 0, slow_on=("cuda",))
    object.__setattr__(module.SPEC, "kernels", (slow, spec("triton", 20, dtypes=("float16",))))
    on_gpu = call(device="cuda")
    with pytest.warns(SlowKernelWarning) as caught:
        fresh.select(on_gpu)
    assert str(caught[0].message) == (
        'running_sum runs on cuda by kernel "reference", which is slow there. '
        "triton: dtype is float32 (needs float16)  Explain: python -m polyhead kernels explain running_sum "
        "--shape 2,64 --dtype float32 --device cuda"
    )
    fresh.select(on_gpu)  # said once; warnings are errors here
    fresh.select(call())
    with pytest.warns(SlowKernelWarning, match="dtype is float64"):
        fresh.select(call(device="cuda", dtype=torch.float64))


def test_a_slow_path_without_another_kernel(fresh: Registry, module: Any) -> None:
    object.__setattr__(module.SPEC, "kernels", (spec("reference", 0, slow_on=("cuda",)),))
    with pytest.warns(SlowKernelWarning, match=r"slow there. No other kernel is installed.  Explain: python"):
        fresh.select(call(device="cuda"))


def test_names_and_priorities_have_one_owner(fresh: Registry) -> None:
    with pytest.raises(
        KernelError, match=r'"reference" of running_sum belongs to both tests_.*:reference and .*Rename'
    ):
        fresh.register(spec("reference", 5))
    with pytest.raises(KernelError, match=r'Kernels "reference" and "other" of running_sum both have priority 0'):
        fresh.register(spec("other", 0))
    with pytest.raises(KernelError, match=r"belongs to both .*reference and .*test_names_and.*<lambda>"):
        fresh.register(KernelSpec("running_sum", "reference", lambda x, gain: x))
    with pytest.raises(UnknownNameError, match='No operator "stroll"'):
        fresh.register(KernelSpec("stroll", "fast", "a:b"))
    assert [kernel.name for kernel in fresh.kernels("running_sum")] == ["reference"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": "running sum"}, "both names must be identifiers"),
        ({"name": ""}, "both names must be identifiers"),
        ({"function": "module.function"}, 'function "module.function" is not of the form "module:function"'),
        ({"dtypes": ("float32", "fp16")}, "no dtype fp16.  All: float64, float32, bfloat16, float16"),
        ({"wins_from": -1}, "wins_from is -1, expected a length of 0 or more"),
    ],
)
def test_a_malformed_kernel_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        KernelSpec(**{"operator": "running_sum", "name": "fast", "function": "a:b", **arguments})


def test_a_kernel_that_cannot_be_imported(fresh: Registry) -> None:
    fresh.register(KernelSpec("running_sum", "lost", "polyhead_nowhere.module:function", priority=20))
    real = Call("running_sum", {"x": torch.ones(2, 3)}, {"gain": 1.0}, 3)
    with pytest.raises(
        KernelError, match=r'Kernel "polyhead_nowhere.module:function" cannot be loaded: No module named'
    ):
        fresh.select(real).run(real)
    fresh = Registry({"running_sum": "tests_running_sum:SPEC"})
    fresh.register(KernelSpec("running_sum", "lost", "tests_running_sum:missing", priority=20))
    with pytest.raises(KernelError, match=r'cannot be loaded: Module "tests_running_sum" has no "missing"'):
        fresh.select(real).run(real)


def test_plugins_add_kernels_when_the_first_operator_is_looked_up(module: Any) -> None:
    class Fast:
        @hookimpl
        def polyhead_register_kernels(self, registry: Any) -> None:
            registry.register(spec("fast", 20))

    class Broken:
        @hookimpl
        def polyhead_register_kernels(self, registry: Any) -> None:
            registry.register(spec("reference", 1))

    manager = plugins.reload()
    try:
        plugins.register(Fast(), "fast")
        plugins.register(Broken(), "broken")
        both = Registry({"running_sum": "tests_running_sum:SPEC"}, plugins=True)
        assert [kernel.name for kernel in both.kernels("running_sum")] == ["fast", "reference"]
        assert [failure.name for failure in plugins.failures()][-1] == "broken"
    finally:
        assert manager is not plugins.reload()


def test_use_kernel_nests_and_ends() -> None:
    assert attend() == "torch"
    with use_kernel(softmax_attention="reference"):
        assert attend() == "reference"
        with use_kernel(op="torch"):
            assert attend() == "torch"
            with use_kernel(softmax_attention=None):
                assert forced("softmax_attention") is None
                assert forced("anything") == "torch"
        assert attend() == "reference"
        with pytest.raises(ZeroDivisionError), use_kernel(softmax_attention="torch"):
            raise ZeroDivisionError
        assert attend() == "reference"
    assert forced("softmax_attention") is None


def test_use_kernel_stays_in_its_thread() -> None:
    seen: list[str] = []
    with use_kernel(softmax_attention="reference"):
        thread = threading.Thread(target=lambda: seen.append(attend()))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_use_kernel_takes_a_kernel_that_is_not_registered() -> None:
    x = torch.ones(1, 1, 2, 2)
    mine = KernelSpec("softmax_attention", "mine", lambda q, k, v, **_: q * 7)
    with use_kernel(softmax_attention=mine):
        assert torch.equal(softmax_attention(x, x, x), x * 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kernels", "error", "message"),
    [
        (
            {"softmax_atention": "torch"},
            UnknownNameError,
            'No operator "softmax_atention". Did you mean "softmax_attention"',
        ),
        ({"softmax_atention": None}, UnknownNameError, 'No operator "softmax_atention"'),
        (
            {"softmax_attention": "tort"},
            UnknownNameError,
            'No kernel of softmax_attention "tort". Did you mean "torch"?',
        ),
        ({"op": "tort"}, UnknownNameError, 'No kernel "tort". Did you mean "torch"?'),
        ({"op": spec("fast", 1)}, KernelError, 'Kernel "fast" is of running_sum; it cannot run every operator'),
        (
            {"softmax_attention": spec("fast", 1)},
            KernelError,
            'Kernel "fast" is of running_sum, not of softmax_attention',
        ),
    ],
)
def test_use_kernel_refuses_what_does_not_exist(kernels: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)), use_kernel(**kernels):
        pass


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_KERNEL", "reference")
    assert attend() == "reference"
    monkeypatch.setenv("POLYHEAD_KERNEL", "reference, softmax_attention=torch")
    assert attend() == "torch"
    with use_kernel(softmax_attention="reference"):
        assert attend() == "reference"
    monkeypatch.setenv("POLYHEAD_KERNEL", "")
    assert forced("softmax_attention") is None


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "torch,reference",
            ConfigError,
            'POLYHEAD_KERNEL is "torch,reference": "reference" is not KERNEL or OPERATOR=KERNEL',
        ),
        ("softmax_attention=", ConfigError, '"softmax_attention=" is not KERNEL or OPERATOR=KERNEL, each once'),
        ("torch,", ConfigError, '"" is not KERNEL or OPERATOR=KERNEL'),
        ("triton_", UnknownNameError, 'No kernel "triton_"'),
        ("softmax=torch", UnknownNameError, 'No operator "softmax"'),
    ],
)
def test_a_wrong_environment_variable(
    monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception], message: str
) -> None:
    monkeypatch.setenv("POLYHEAD_KERNEL", text)
    with pytest.raises(error, match=re.escape(message)):
        attend()


def test_a_forced_kernel_that_cannot_serve(add: Callable[..., None], module: Any) -> None:
    add(kernels=(spec("reference", 0), spec("half", 10, dtypes=("float16",))))
    with use_kernel(running_sum="half"):
        assert module.running_sum(torch.ones(2, dtype=torch.float16)).output.tolist() == [1, 2]
        message = (
            'Kernel "half" cannot run running_sum on this call: dtype is float32 (needs float16). x (2,), dtype float'
        )
        with pytest.raises(KernelError, match=re.escape(message)):
            module.running_sum(torch.ones(2))
    with use_kernel(op="half"), pytest.raises(UnknownNameError, match='No kernel of softmax_attention "half"'):
        attend()


def test_compiled_functions_follow_the_context() -> None:
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: softmax_attention(x, x, x).output, fullgraph=True, backend=keep)
    automatic = compiled(x)
    with use_kernel(softmax_attention="reference"):
        reference = compiled(x)
    compiled(x)
    assert len(graphs) == 2
    fused = ["scaled_dot_product_attention" in str(graph.code) for graph in graphs]
    assert fused == [True, False]
    torch.testing.assert_close(automatic, reference)


def test_kernels_are_loaded_while_compiling() -> None:
    """The first use of an operator may be inside torch.compile, which cannot trace imports."""
    for cache in (registry._kernels, registry._specs):
        cache.clear()
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: softmax_attention(x, x, x).output, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), softmax_attention(x, x, x).output)


def test_explain() -> None:
    assert explain("softmax_attention", (2, 8, 128, 64), "bfloat16", "cuda", causal=True).chosen == "torch"
    with use_kernel(op="reference"):
        forced_one = explain("softmax_attention", (2, 8, 128, 64))
    assert (forced_one.chosen, forced_one.forced) == ("reference", "reference")
    assert forced_one.rejected["torch"] == ('"reference" is forced',)
    assert "  forced by use_kernel or POLYHEAD_KERNEL: reference" in str(forced_one)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("softmax", (2, 8, 128, 64)), UnknownNameError, 'No operator "softmax"'),
        (
            ("softmax_attention", (2, 8)),
            ShapeError,
            "The shape of q has 2 numbers, expected 4: batch,heads,seq,head_dim.",
        ),
        (("softmax_attention", (2, 8, 128, 64), "half"), UnknownNameError, 'No dtype of softmax_attention "half"'),
        (("softmax_attention", (2, 8, 128, 64), "float32", "gpu"), KernelError, '"gpu" is no device: '),
    ],
)
def test_explain_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        explain(*arguments)


def test_explain_refuses_an_unknown_option() -> None:
    with pytest.raises(UnknownNameError, match=r'No option of softmax_attention "casual". Did you mean "causal"\?'):
        explain("softmax_attention", (2, 8, 128, 64), casual=True)


def test_needs_grad() -> None:
    x = torch.ones(2, requires_grad=True)
    made = Call("running_sum", {"x": x, "mask": None}, {}, 2)
    assert made.needs_grad
    with torch.no_grad():
        assert not made.needs_grad
    assert not call().needs_grad
