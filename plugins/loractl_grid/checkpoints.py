"""The adapters that a run left in its folder, in the order in which it wrote them."""

import re
from pathlib import Path

# As loractl, diffusers, kohya, ai-toolkit and OneTrainer say which step or epoch a file is of.
_STEP = re.compile(r"(?:step|checkpoint|epoch|save)[-_]?(\d+)|[-_](\d{6,})(?=\.safetensors$)")
_OTHERS = re.compile(r"state\.safetensors|.*\.learned_embeds\.safetensors")  # of optimizers, of words alone
_TWIN = "pytorch_lora_weights.safetensors"  # what diffusers looks for: beside it is the same under the job's name


def written(folder: Path) -> tuple[Path, ...]:
    """The files of adapters in a folder and below, by their steps; those that name no step are the result, and last.

    ValueError when there is none.
    """
    found = [file for file in sorted(folder.rglob("*.safetensors")) if not _is_other(file.relative_to(folder))]
    files = [file for file in found if file.name != _TWIN or not any(_is_twin(file, each) for each in found)]
    if not files:
        raise ValueError(f"there is no adapter in {folder}: name the folder of a run, or adapters' files")
    return tuple(sorted(files, key=lambda file: _order(file.relative_to(folder))))


def _order(file: Path) -> tuple[bool, int]:
    steps = [int(step or number) for step, number in _STEP.findall(file.as_posix())]
    return not steps, steps[-1] if steps else 0


def _is_other(file: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.parts)
    return hidden or "embeddings" in file.parts or bool(_OTHERS.fullmatch(file.name))


def _is_twin(file: Path, other: Path) -> bool:
    """Whether the other is of the same moment."""
    return other != file and other.parent == file.parent and not _STEP.search(other.name)
