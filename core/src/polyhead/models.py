"""Models: build one by name, save it to a folder, load it again.

A model is an ``nn.Module`` with a frozen dataclass ``Config``, built as ``Model(config)`` and carrying ``self.config``.
A saved model is a folder with the file names that Hugging Face uses: ``config.json``, ``model.safetensors``, further
JSON files of whoever saved it, and ``manifest.json`` with a digest of each. Loading runs no code from the folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from polyhead import artifacts, plugins
from polyhead.artifacts import JSON
from polyhead.configs import config_from_dict, config_to_dict
from polyhead.errors import CheckpointError, ConfigError, nearest
from polyhead.manifest import resolve

if TYPE_CHECKING:
    import os

    from torch import Tensor, nn

__all__ = [
    "CONFIG",
    "FORMAT",
    "WEIGHTS",
    "Pretrained",
    "SavedConfig",
    "config_from_dict",
    "config_to_dict",
    "from_pretrained",
    "load",
    "load_as",
    "model_name",
    "read_config",
    "read_extra",
    "save_pretrained",
]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = 1
_CONFIG_LIMIT = 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
M = TypeVar("M")
_NO_EXTRA: Mapping[str, JSON] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class SavedConfig:
    """What ``config.json`` says."""

    model: str
    """The registered name of the model."""
    config: Mapping[str, Any]
    """The values of its config, as JSON."""
    polyhead: str
    """The version that wrote it."""


class Pretrained:
    """Gives a model ``save_pretrained`` and ``from_pretrained``: ``class GMAN(Pretrained, nn.Module)``."""

    Config: ClassVar[type]
    """A frozen dataclass."""
    config: Any
    """The instance of ``Config`` that the model was built with."""

    def save_pretrained(self, folder: str | os.PathLike[str], *, extra: Mapping[str, JSON] = _NO_EXTRA) -> Path:
        """Save config and weights to ``folder``, whole or not at all; see the function ``save_pretrained``."""
        return save_pretrained(self, folder, extra=extra)

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """Load a model of this class, in evaluation mode; see ``load_as``."""
        return load_as(cls, folder_or_hub_id, revision=revision)


def model_name(model: type | object) -> str:
    """Return the registered name of a model or its class; the class's own name if no plugin registers it."""
    cls = model if isinstance(model, type) else type(model)
    own = f"{cls.__module__}:{cls.__qualname__}"
    specs = [spec for plugin in plugins.plugins() for spec in plugin.models]
    for spec in specs:
        if spec.target == own:
            return spec.name
    for spec in specs:  # a target may name a re-export; if this class came from there, that module is already imported
        module, _, attribute = spec.target.partition(":")
        if module in sys.modules and getattr(sys.modules[module], attribute, None) is cls:
            return spec.name
    return cls.__name__


def save_pretrained(model: Any, folder: str | os.PathLike[str], *, extra: Mapping[str, JSON] = _NO_EXTRA) -> Path:
    """Save config and weights to ``folder``, whole or not at all; return its path.

    Parameters and persistent buffers are saved, tied ones once. An existing folder is replaced if it holds nothing but
    a saved model.

    Args:
        model: an ``nn.Module`` with a dataclass ``config``.
        folder: made with its parents.
        extra: further JSON files by name, such as ``{"task.json": {...}}``.

    Raises:
        ConfigError: the model has no such config, a config value is not JSON, or the name of an extra file is not free.
        StorageError: the folder cannot be written or holds other files; it is left as it was.
    """
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ConfigError(f"{type(model).__name__} cannot be saved: its attribute config is no dataclass ({config!r}).")
    for name in extra:
        if name in (CONFIG, artifacts.MANIFEST) or not re.fullmatch(r"[A-Za-z0-9_-]+\.json", name):
            raise ConfigError(f'Extra file "{name}" cannot be saved with a model: use a free name such as "task.json".')
    # Everything that can fail on its own does so before a file is touched.
    header: dict[str, JSON] = {
        "model": model_name(model),
        "format": FORMAT,
        "config": config_to_dict(config),
        "polyhead": _version(),
    }
    texts = {name: _extra_bytes(name, value) for name, value in extra.items()}
    folder = Path(folder)
    with artifacts.atomic_folder(folder, replace=True) as temporary:
        (temporary / CONFIG).write_bytes(artifacts.json_bytes(header))
        for name, text in texts.items():
            (temporary / name).write_bytes(text)
        artifacts.save_tensors(temporary / WEIGHTS, model.state_dict())
        artifacts.write_manifest(temporary)
    return folder


def from_pretrained(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> nn.Module:
    """Load any registered model from a folder or the Hugging Face Hub, in evaluation mode.

    Args:
        folder_or_hub_id: a folder made by ``save_pretrained``, or ``owner/name`` on the Hub (needs huggingface_hub).
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: the folder is missing or damaged, or no installed plugin has its model.
        ConfigError: its config does not fit the installed version of the model.
    """
    folder = _folder(folder_or_hub_id, revision)
    saved = _open(folder)
    try:
        _, spec = plugins.find_model(saved.model)
    except LookupError as error:
        raise CheckpointError(
            f'{folder} holds the model "{saved.model}", which no installed plugin has. {error}'
        ) from error
    return _build_and_fill(resolve(spec.target), saved, folder)


def load_as(cls: type[M], folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> M:
    """Load a model of the class ``cls``, registered or not, in evaluation mode.

    Args:
        cls: has the dataclass ``Config`` and is built as ``cls(config)``.
        folder_or_hub_id: a folder made by ``save_pretrained``, or ``owner/name`` on the Hub (needs huggingface_hub).
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: the folder is missing or damaged, or holds another model; names both.
        ConfigError: its config does not fit this version of the model.
    """
    folder = _folder(folder_or_hub_id, revision)
    saved = _open(folder)
    if saved.model != model_name(cls):
        raise CheckpointError(
            f'{folder} holds the model "{saved.model}", not "{model_name(cls)}". '
            f'Load it with polyhead.from_pretrained("{folder}").'
        )
    return _build_and_fill(cls, saved, folder)


def load(name_or_folder_or_hub_id: str | os.PathLike[str], *, preset: str = "", **config: Any) -> nn.Module:
    """Build a registered model with fresh weights, or load a saved one.

    A registered name comes first; write ``./name`` for a folder of that name.

    Args:
        name_or_folder_or_hub_id: a registered model, a folder of ``save_pretrained``, or ``owner/name`` on the Hub.
        preset: a named configuration of the registered model, such as "tiny".
        config: values that differ from the preset and the defaults.

    Returns:
        nn.Module: fresh weights in training mode, or the saved ones in evaluation mode.

    Raises:
        UnknownNameError: no such model; suggests the nearest one.
        ConfigError: unknown preset or setting, a value of the wrong type, or settings given for a saved model.
        CheckpointError: the folder is damaged or of a model that no installed plugin has.
    """
    name = str(name_or_folder_or_hub_id)
    known = {spec.name for plugin in plugins.plugins() for spec in plugin.models}
    if name not in known and (Path(name).exists() or _HUB_ID.fullmatch(name)):
        if preset or config:
            given = ", ".join(sorted(config) or [f"preset={preset}"])
            raise ConfigError(f"{name} is a saved model and has its config; {given} cannot be changed. Leave it out.")
        return from_pretrained(name)
    _, spec = plugins.find_model(name)
    if preset and preset not in spec.presets:
        guess = nearest(preset, spec.presets)
        mend = f'Did you mean "{guess}"?' if guess else f"All: {', '.join(sorted(spec.presets)) or 'none'}"
        raise ConfigError(f'Model "{name}" has no preset "{preset}". {mend}')
    cls = resolve(spec.target)
    values = {**(spec.presets[preset] if preset else {}), **config}
    model: nn.Module = cls(config_from_dict(cls.Config, values, what=f'Model "{name}"'))
    return model


def read_config(folder: str | os.PathLike[str]) -> SavedConfig:
    """Read ``config.json`` of a saved model.

    Raises:
        CheckpointError: it is missing, damaged, or written by a newer Polyhead.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        hint = f"Did you mean {folder / 'model'}?" if (folder / "model" / CONFIG).is_file() else "Save one there first."
        raise CheckpointError(f"{folder} is not a saved model: it has no {CONFIG}. {hint}")
    content = artifacts.read_json(path, limit=_CONFIG_LIMIT)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object. Use another copy of {folder}.")
    model, form, config = content.get("model"), content.get("format"), content.get("config")
    if not isinstance(model, str) or type(form) is not int or not isinstance(config, dict):
        raise CheckpointError(f'{path} is not of Polyhead: it needs "model", "format" and "config".')
    if form > FORMAT:
        raise CheckpointError(
            f"{path} has format {form}, made by Polyhead {content.get('polyhead')}; this one reads up to {FORMAT}. "
            f"pip install --upgrade polyhead"
        )
    return SavedConfig(model, config, str(content.get("polyhead", "")))


def read_extra(folder: str | os.PathLike[str], name: str) -> Any:
    """Read a JSON file that was saved with a model as ``extra``; verify the folder first.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    folder = Path(folder)
    if (folder / artifacts.MANIFEST).is_file():
        artifacts.verify_manifest(folder)
    return artifacts.read_json(folder / name)


def _version() -> str:
    from polyhead import __version__

    return __version__


def _extra_bytes(name: str, value: JSON) -> bytes:
    try:
        return artifacts.json_bytes(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'Extra file "{name}" cannot be saved with a model: {error}.') from error


def _open(folder: Path) -> SavedConfig:
    saved = read_config(folder)
    # A folder from elsewhere, such as the Hub, may come without a manifest; then the reader's own checks must do.
    if (folder / artifacts.MANIFEST).is_file():
        artifacts.verify_manifest(folder)
    return saved


def _folder(folder_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the local folder of a saved model, fetched from the Hub if it is no path."""
    path = Path(folder_or_hub_id)
    if path.exists():
        return path
    name = str(folder_or_hub_id)
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f'There is no folder "{name}", and it is not an id "owner/name" of the Hugging Face Hub.')
    if importlib.util.find_spec("huggingface_hub") is None:
        raise CheckpointError(
            f'There is no folder "{name}". If it is an id of the Hugging Face Hub: pip install huggingface_hub'
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", WEIGHTS]))
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise CheckpointError(
            f'There is no folder "{name}", and the Hugging Face Hub did not give it: {type(error).__name__}: {error}'
        ) from error


def _build_and_fill(cls: Any, saved: SavedConfig, folder: Path) -> Any:
    import torch

    config = config_from_dict(cls.Config, saved.config, what=f"{folder / CONFIG}")
    tensors = artifacts.load_tensors(folder / WEIGHTS)
    # Fresh weights are drawn and thrown away: loading must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model = cls(config)
    _fill(model, tensors, folder)
    return model.eval()


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy ``tensors`` into the model, which takes over their floating dtypes; every name and shape must fit."""
    own = model.state_dict()
    problems = [f'"{name}" is missing' for name in sorted(own.keys() - tensors.keys())]
    problems += [f'"{name}" is unknown' for name in sorted(tensors.keys() - own.keys())]
    for name in sorted(own.keys() & tensors.keys()):
        mine, theirs = own[name], tensors[name]
        if mine.shape != theirs.shape:
            problems.append(f'"{name}" has shape {tuple(theirs.shape)} where the config asks for {tuple(mine.shape)}')
        elif mine.dtype != theirs.dtype and not (mine.is_floating_point() and theirs.is_floating_point()):
            problems.append(f'"{name}" has dtype {theirs.dtype} where the model has {mine.dtype}')
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {CONFIG}: {shown}. Use another copy of {folder}.")
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floating) == 1:
        model.to(floating.pop())  # non-persistent buffers too
    for name, tensor in model.named_parameters():
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name].dtype)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            saved = tensors.get(f"{prefix}.{name}" if prefix else name)
            if saved is not None:
                setattr(module, name, buffer.to(saved.dtype))
    model.load_state_dict(dict(tensors))
