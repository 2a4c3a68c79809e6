"""A model's networks as its configurations have them: names, shapes and types of their tensors, and no numbers.

They are built inside of a context that says what such tensors are: torch's meta device, or fake tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loractl.errors import MismatchError

_LIBRARIES = ("diffusers", "transformers")


def outlines(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, nn.Module]:
    """The networks of a diffusers folder by the names that its model_index.json, `index`, has for them; frozen.

    Those without a configuration are left out. MismatchError for a network that no library here has.
    """
    parts = {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and value[0] in _LIBRARIES and (folder / name / "config.json").is_file()
    }
    built = {
        part: _network(library, name, folder / part, dtype)
        for part, (library, name) in parts.items()
        if _is_network(library, name)
    }
    for network in built.values():
        network.requires_grad_(False).eval()
    return built


def _is_network(library: str, name: str) -> bool:
    return isinstance(found := _class(library, name), type) and issubclass(found, nn.Module)


def _class(library: str, name: str) -> Any:
    import diffusers
    import transformers

    found = getattr({"diffusers": diffusers, "transformers": transformers}[library], name, None)
    if found is None:
        raise MismatchError(
            f"the model needs {library}.{name}, which the installed {library} does not have: upgrade it"
        )
    return found


def _network(library: str, name: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    cls = _class(library, name)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if library == "diffusers":
            network = cls.from_config(cls.load_config(folder))
        else:
            network = cls(cls.config_class.from_pretrained(folder))
    finally:
        torch.set_default_dtype(before)
    return network  # type: ignore[no-any-return]
