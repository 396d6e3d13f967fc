"""Token mixers by name: those of core, and those that plugins register. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from polyhead.errors import PluginError
from polyhead.manifest import MixerSpec, resolve

if TYPE_CHECKING:
    from polyhead.nn.mixing import TokenMixer

__all__ = ["BUILT_IN", "find_mixer", "make_mixer", "mixers"]

BUILT_IN = (
    MixerSpec(
        name="softmax",
        target="polyhead.nn.softmax_mixer:SoftmaxMixer",
        summary="multi-head softmax attention with a key-value cache",
        paper="Vaswani et al. 2017, arXiv:1706.03762",
    ),
    MixerSpec(
        name="lightning",
        target="polyhead.nn.lightning_attention:LightningAttention",
        summary="causal linear attention with decay and an output gate, state of constant size",
        paper="Qin et al. 2024, arXiv:2405.17381",
    ),
    MixerSpec(
        name="aaren",
        target="polyhead.nn.aaren:Aaren",
        summary="softmax attention of a learned query over every prefix, state of constant size",
        paper="Feng et al. 2024, arXiv:2405.13956",
    ),
)


def mixers() -> tuple[MixerSpec, ...]:
    """Return every mixer: core's, then those of plugins."""
    from polyhead import plugins

    return (*BUILT_IN, *(spec for plugin in plugins.plugins() for spec in plugin.mixers))


def find_mixer(name: str) -> MixerSpec:
    """Return a mixer by name. Plugins are loaded only if core has none of this name.

    Raises:
        UnknownNameError: no such mixer; suggests the nearest one.
    """
    for spec in BUILT_IN:
        if spec.name == name:
            return spec
    from polyhead import plugins

    return plugins.find_mixer(name)[1]


def make_mixer(
    mixer: str | Callable[..., Any], dim: int, heads: int, settings: Mapping[str, Any] | None = None
) -> TokenMixer:
    """Make a token mixer.

    Args:
        mixer: a name, or what makes one: called as ``mixer(dim, heads, **settings)``.
        dim: width of a token.
        heads: number of heads.
        settings: of this mixer.

    Raises:
        UnknownNameError: no such mixer; suggests the nearest one.
        PluginError: what it makes has none of the methods of ``polyhead.nn.TokenMixer``.
    """
    from polyhead.nn.mixing import TokenMixer

    build = resolve(find_mixer(mixer).target) if isinstance(mixer, str) else mixer
    made = build(dim, heads, **(settings or {}))
    if not isinstance(made, TokenMixer):
        missing = [name for name in ("forward", "init_state", "step") if not hasattr(made, name)]
        raise PluginError(f"{type(made).__name__} is no token mixer: it has no {', '.join(missing)}.")
    return made
