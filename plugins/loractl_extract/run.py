"""Carries out an extracting job: finds the factors among a model's tensors and saves them as an adapter.

A model that is saved while it wears an adapter has the factors in its state dict, called as the wrapper calls them; and
some files carry an adapter in kohya's names beside the weights. Both become a small file that `load_adapter` reads.
The adapter of a pipeline in memory is what `loractl.inject.live.take` returns.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from loractl.device import PRECISIONS
from loractl.errors import FormatError, InputError
from loractl.events import Emit, Facts, Note, Wrote
from loractl.formats import load_adapter, save_adapter
from loractl.formats.checkpoint import folder_headers, read_tensor
from loractl.formats.ldm import module_path
from loractl.formats.safefile import Header, read_header, write_tensors
from loractl.method import Outcome
from loractl.tensors.adapter import Adapter
from loractl_extract.spec import ExtractSpec

# How wrappers call their factors: of peft, of loractl, and of cloneofsimo/lora, which has no names for adapters.
_WRAPPERS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B)\.(?P<name>[^.]+)\.weight"),
    re.compile(r"(?P<module>.+)\.lora_(?P<part>magnitude_vector)\.(?P<name>[^.]+)(\.weight)?"),
    re.compile(r"(?P<module>.+)\.adapters\.(?P<name>[^.]+)\.(?P<part>down|up)"),
    re.compile(r"(?P<module>.+)\.lora_(?P<part>down|up)\.weight"),
)
_PARTS = {
    **dict.fromkeys(("A", "down"), "lora_A.weight"),
    **dict.fromkeys(("B", "up"), "lora_B.weight"),
    "magnitude_vector": "lora_magnitude_vector",
}
_BUNDLED = re.compile(r"(lora_(unet|te\d?|transformer)|lycoris)_\w+\.[\w.]+")  # every part, for `load_adapter` to judge
_UNNAMED = "default"


class Factor(NamedTuple):
    """A tensor of an adapter: the adapter's name, the file and the key there, and its key in an adapter's file."""

    adapter: str
    header: Header
    key: str
    plain: str


def run(spec: ExtractSpec, emit: Emit) -> Outcome:
    factors = choose(spec, list(find(spec.model)))
    adapter = assemble(spec.model, factors)
    if spec.alpha is not None and not any(_BUNDLED.fullmatch(factor.key) for factor in factors):
        modules = {path: replace(low, alpha=spec.alpha) for path, low in adapter.modules.items()}
        adapter = replace(adapter, modules=modules)
    for text in adapter.notes:
        emit(Note(f"{spec.model.name}: {text}", "warning"))
    numbers = {"modules": len(adapter.modules), "parameters": adapter.parameters}
    emit(Facts("extracted", {"adapter": factors[0].adapter, **numbers}))
    out = spec.destination()
    out.parent.mkdir(parents=True, exist_ok=True)
    adapter = replace(adapter, metadata=spec.provenance())
    dtype, overwrite = PRECISIONS[spec.output.dtype], spec.output.overwrite
    save_adapter(out, adapter, spec.output.format, dtype=dtype, name=spec.name, overwrite=overwrite)
    emit(Wrote(out, spec.output.format))
    return Outcome({spec.output.format: out}, numbers)


def find(model: Path) -> Iterator[Factor]:
    """Every factor in a diffusers folder or a single file."""
    if not model.is_dir():
        header = read_header(model)
        for key in header.entries:
            if _BUNDLED.fullmatch(key):
                yield Factor(_UNNAMED, header, key, key)
            else:
                yield from _worn(header, key, module_path)
        return
    for component, header in folder_headers(model):
        for key in header.entries:
            yield from _worn(header, key, f"{component}.{{}}".format)


def _worn(header: Header, key: str, locate: Callable[[str], str | None]) -> Iterator[Factor]:
    """The factor that `key` is, if a wrapper called it so and its module is one of a pipeline's."""
    found = next((match for pattern in _WRAPPERS if (match := pattern.fullmatch(key))), None)
    path = locate(found["module"]) if found else None
    if found and path:
        name = found.groupdict().get("name", _UNNAMED)
        yield Factor(name, header, key, f"{path}.{_PARTS[found['part']]}")


def choose(spec: ExtractSpec, factors: list[Factor]) -> list[Factor]:
    """The factors of the one adapter that is meant."""
    adapters = defaultdict(list)
    for factor in factors:
        adapters[factor.adapter].append(factor)
    if not adapters:
        raise InputError(f"{spec.model} has no adapter inside: to compare it with its base, use `loractl distill`")
    names = sorted(adapters)
    if spec.adapter is None and len(names) > 1:
        raise InputError(f"{spec.model} has the adapters {', '.join(names)}: choose one by the key adapter")
    name = spec.adapter or names[0]
    if name not in adapters:
        raise InputError(f"{spec.model} has no adapter {name} inside, but {', '.join(names)}")
    return adapters[name]


def assemble(model: Path, factors: list[Factor]) -> Adapter:
    """The adapter, read as if its tensors were alone in a file. FormatError where they are not all understood."""
    tensors = {factor.plain: read_tensor(factor.header, factor.key) for factor in factors}
    with TemporaryDirectory() as folder:
        alone = Path(folder, "adapter.safetensors")
        write_tensors(alone, tensors, {})
        try:
            return load_adapter(alone, whole=True)
        except FormatError as error:
            raise FormatError(str(error).replace(str(alone), f"{model}: the adapter inside")) from error
