"""Who takes part in a picture beside the model: adapters and learned tokens, known by the content of their files."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loractl.formats.pickles import is_pickle
from loractl.formats.safefile import data_hash
from loractl.sample.origin import origin
from loractl.tensors.adapter import Adapter
from loractl_infer.prompts import spoken
from loractl_infer.spec import InferSpec, ScheduledUse


@dataclass(frozen=True)
class Part:
    """An adapter's file, as it is used: what it changes, and its SHA-256, of all of it and, as A1111 and Civitai know
    adapters, of the tensors alone.
    """

    name: str
    use: ScheduledUse
    changes: bool  # a network: then its weight counts
    tokens: tuple[str, ...]
    content: str
    data: str

    @classmethod
    def of(cls, name: str, use: ScheduledUse, adapter: Adapter) -> "Part":
        content = file_hash(use.path)
        data = content if is_pickle(use.path) else data_hash(use.path)
        tokens = tuple(dict.fromkeys(path.partition(".")[2] for path in adapter.tokens))
        return cls(name, use, bool({*adapter.modules, *adapter.vectors}), tokens, content, data)

    def told(self) -> dict[str, Any]:
        """The job's table of it, with the file's name and content in the place of its path."""
        use = self.use.model_dump(mode="json", exclude={"path"}, exclude_none=True, exclude_defaults=True)
        return {"name": self.use.path.name, "sha256": self.content, "weight": self.use.weight, **use}


def a1111_hashes(parts: Sequence[Part], texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """As A1111 tells them: "Lora hashes" by adapter, "TI hashes" by those learned tokens that are in the texts."""
    tokens = {token: part.content for part in parts for token in part.tokens}
    return {
        "Lora hashes": {part.name: part.data for part in parts if part.changes},
        "TI hashes": {token: digest for token, digest in tokens.items() if any(spoken(token, text) for text in texts)},
    }


def details(spec: InferSpec, parts: Sequence[Part], precision: str) -> dict[str, Any]:
    """What else a picture of this job depends on, without folders: files count by their content, since they may change
    under their names.
    """
    told: Mapping[str, Any] = {
        "files": [part.told() for part in parts],
        "engine": spec.composition.engine,
        "revision": spec.model.revision,
        "model_files": origin(spec.model.source, spec.model.config),
        "precision": precision,
        "quantize": None if spec.memory.quantize == "none" else spec.memory.quantize,
        "image": _file(spec.sample.image),
        "mask": _file(spec.sample.mask),
    }
    return {name: value for name, value in told.items() if value is not None}


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of all bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _file(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"name": path.name, "sha256": file_hash(path)}
