"""Encoded pictures on disk, keyed by all that they follow from: an entry may be missing, but is never out of date."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from loractl.errors import InputError
from loractl.formats.safefile import read_tensors, write_tensors
from loractl.tensors.adapter import content_hash

RECIPE = 1  # goes up when the same picture and view would be encoded otherwise


def fingerprint(autoencoder: nn.Module) -> str:
    """SHA-256 (hex) of the weights, their precision and the configuration, less what says where they came from."""
    config = {key: value for key, value in dict(getattr(autoencoder, "config", {})).items() if not key.startswith("_")}
    told = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(f"{content_hash(autoencoder.state_dict())} {told}".encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): check the path") from error


@dataclass(frozen=True)
class Cache:
    """A folder of entries, each one safetensors file. `encoder` is the autoencoder's fingerprint."""

    folder: Path
    encoder: str

    def read(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors that were written under the key; None when there are none or the file is damaged."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_tensors(path)
        except InputError:
            return None
        return tensors if metadata.get("content") == content_hash(tensors) else None

    def write(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"content": content_hash(tensors)}, overwrite=True)

    def _path(self, key: Mapping[str, Any]) -> Path:
        told = json.dumps({"recipe": RECIPE, "encoder": self.encoder, **key}, sort_keys=True)
        name = hashlib.sha256(told.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
