"""Single-file checkpoints in the layout of A1111 and ComfyUI: recognized by their keys, loaded through diffusers.

A file has weights and says nothing of itself. The shapes of the networks come from configurations that are here for
every family, or from a diffusers folder or hub id that a job names. From there come tokenizers too, which no file has
and which are not here either, and networks that the file lacks.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from loractl.bases import BASES, DENOISER, configurations, recognize
from loractl.errors import FormatError, InputError, MismatchError
from loractl.formats.checkpoint import as_safetensors
from loractl.formats.safefile import Header, read_header


def recognize_file(path: Path) -> str:
    """The same for a safetensors file, of which only the header is read."""
    return recognize(path, read_header(path).entries)


def load_single_file(
    source: str, dtype: torch.dtype, config: str | None = None, allow_pickle: bool = False, **more: Any
) -> Any:
    """The pipeline of a checkpoint, its weights in `dtype` whatever they are in the file.

    `config` is a diffusers folder or a hub id of the same family, for tokenizers, other configurations and networks
    that the file lacks; `more` goes to the pipeline. MismatchError for another family, InputError when something is
    missing.
    """
    import diffusers

    path = Path(source)
    with as_safetensors(path, allow_pickle, path.parent) as file:
        header = read_header(file)
        base = recognize(path, header.entries)
        _refuse(path, header, config)
        folder = _config_folder(config) if config else configurations(base)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        _check_family(path, base, index, config)
        parts = _missing(path, base, header, folder, index, dtype) | _tokenizers(path, base, folder, index)
        cls = getattr(diffusers, index["_class_name"])
        return _loaded(
            path,
            lambda: cls.from_single_file(
                str(file), config=str(folder), dtype=dtype, local_files_only=True, **more, **parts
            ),
        )


def variant_of(folder: Path) -> str | None:
    """The variant, such as "fp16", of a diffusers folder whose weights are there in no other form."""
    for name in ("unet", "transformer"):
        files = [file.name for file in (folder / name).glob("*.safetensors")]
        variants = {part[1] for file in files if len(part := file.split(".")) > 2}
        if variants and not any(file.count(".") == 1 for file in files):
            return min(variants).partition("-")[0]
    return None


def _refuse(path: Path, header: Header, config: str | None) -> None:
    """What diffusers would load wrongly or not at all."""
    if scaled := next((key for key in header.entries if key.endswith((".scale_weight", "scaled_fp8"))), None):
        raise FormatError(f"{path} has weights in 8 bits with factors beside them ({scaled}): get it in fp16 or bf16")
    first = header.entries.get(f"{DENOISER}input_blocks.0.0.weight")
    if config is None and first is not None and first.shape[1] != 4:
        raise MismatchError(
            f"{path} is a model for inpainting or editing, whose UNet sees {first.shape[1]} channels: set model.config "
            "to a diffusers folder or a hub id of the same kind"
        )


def _check_family(path: Path, base: str, index: Mapping[str, Any], config: str | None) -> None:
    own = json.loads((configurations(base) / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    alike = (own, own.replace("Pipeline", "InpaintPipeline"))
    if index.get("_class_name") not in alike:
        raise MismatchError(
            f"{path} is a checkpoint of {BASES[base].title}, but model.config {config} is of a "
            f"{index.get('_class_name')}: name a model of its own family"
        )


def _config_folder(config: str) -> Path:
    """A diffusers folder, or what the hub or its cache has of a model besides weights."""
    if (Path(config) / "model_index.json").is_file():
        return Path(config)
    try:
        return _from_hub(config, "*.json", "*.txt", "*.model")
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.config {config!r} is no diffusers folder here, and the hub did not give it: check the name"
        ) from error


def _from_hub(repo: str, *patterns: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, allow_patterns=[*patterns]))


def _missing(
    path: Path, base: str, header: Header, folder: Path, index: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """The networks that the file lacks, from the folder. InputError names those that it lacks as well."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    layout = BASES[base].layout
    lacking = [name for name, signs in layout.parts.items() if not any(key.startswith(signs) for key in header.entries)]
    there = [name for name in lacking if any((folder / name).glob("*.safetensors"))]
    optional = [name for name in lacking if name in layout.optional and name not in there]
    if nowhere := [name for name in lacking if name not in (*there, *optional)]:
        raise InputError(
            f"{path} has no {' and no '.join(nowhere)}: set model.config to a diffusers folder of {BASES[base].title} "
            "that has these networks"
        )
    found = {}
    for name in there:
        library, cls = index[name]
        network = getattr(libraries[library], cls)
        found[name] = network.from_pretrained(folder, subfolder=name, dtype=dtype)
    return found | {each: None for name in optional for each in (name, name.replace("text_encoder", "tokenizer"))}


def _tokenizers(path: Path, base: str, folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizers that the folder lacks, from the hub's model or its cache."""
    import transformers

    wanted = [name for name, kind in index.items() if name.startswith("tokenizer") and kind != [None, None]]
    names = [name for name in wanted if not (folder / name).is_dir()]
    repo = BASES[base].repo
    try:
        found = _from_hub(repo, *(f"{name}/*" for name in names)) if names else folder
        if lacking := [name for name in names if not (found / name).is_dir()]:
            raise FileNotFoundError(lacking[0])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} has no tokenizer, and the hub did not give that of {repo}: set model.config to a diffusers folder "
            f"of {BASES[base].title} that has {names[0]}/"
        ) from error
    return {name: getattr(transformers, index[name][1]).from_pretrained(found / name) for name in names}


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    """What is loaded. InputError where tensors are missing, MismatchError where they do not fit the configurations."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    lacking = InputError(f"{path} lacks tensors of one of its networks: fetch the whole checkpoint")
    try:
        pipeline = load()
    except NotImplementedError as error:  # a tensor was never filled
        raise lacking from error
    except (SingleFileComponentError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MismatchError(
            f"{path} does not fit the configurations of its family ({reason}): set model.config to a diffusers folder "
            "or hub id of the very model"
        ) from error
    networks = [each for each in pipeline.components.values() if isinstance(each, torch.nn.Module)]
    if any(tensor.is_meta for network in networks for tensor in network.parameters()):  # diffusers may not say so
        raise lacking
    return pipeline
