"""Carries out an interpolating job: one adapter for each place on the way."""

from collections.abc import Mapping
from pathlib import Path

from loractl.device import PRECISIONS, pick_device
from loractl.errors import MismatchError
from loractl.events import Emit, Facts, Progress, Wrote
from loractl.formats.lineage import child_of, read_parents, renamed, without_vectors
from loractl.method import Outcome
from loractl.tensors.algebra import add_vectors, align, gram, weighted
from loractl.tensors.lowrank import LowRank
from loractl.tensors.means import slerp
from loractl.tensors.threads import one_thread
from loractl_interpolate.spec import InterpolateSpec


def run(spec: InterpolateSpec, emit: Emit) -> Outcome:
    files = series(spec, emit)
    numbers = {"adapters": len(files)}
    if spec.model and spec.sample:
        from loractl_interpolate.sheet import contact_sheet  # diffusers is not loaded for files alone

        sheet = contact_sheet(spec, spec.model, spec.sample, list(files.values()), emit)
        emit(Wrote(sheet, "sheet"))
        files["sheet"] = sheet
    return Outcome(files, numbers)


@one_thread()
def series(spec: InterpolateSpec, emit: Emit) -> dict[str, Path]:
    """Writes the adapters, in order; name → file."""
    device = pick_device(spec.memory.device if spec.memory.device == "cuda" else "cpu")  # auto is for the sheet
    a, b = read_parents([spec.a, spec.b], emit, True, device)
    parents = [a, renamed(b, spec.rename)]
    if spec.mode != "linear":
        without_vectors(parents, spec.mode)
    rows = align([parent.modules for parent in parents])
    angles = {path: gram(parts) for path, parts in rows.items()} if spec.mode == "slerp" else {}
    emit(Facts("interpolate", {"a": spec.a.name, "b": spec.b.name, "modules": len(rows), "mode": spec.mode}))
    files = {}
    for index, t in enumerate(spec.places):
        weights = (1 - t, t)
        own = {path: slerp(angles[path], weights) if path in angles else weights for path in rows}
        modules = {path: weighted(parts, own[path]) for path, parts in rows.items()}
        dtype = PRECISIONS.get(spec.output.dtype or "")
        child = child_of(parents, weights, spec.provenance(), spec.output.format, dtype)
        file = spec.destination() / f"{index:03}-t{t:g}.safetensors"
        vectors = add_vectors([parent.vectors for parent in parents], weights)
        child.save(file, _live(modules), vectors, spec.output.overwrite)
        files[file.stem] = file
        emit(Wrote(file, child.format))
        emit(Progress("interpolate", index + 1, len(spec.places)))
    return files


def _live(modules: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The modules to which something contributes."""
    live = {path: low for path, low in modules.items() if low.alpha}
    if not live:
        raise MismatchError("both adapters are zero: there is nothing to interpolate")
    return live
