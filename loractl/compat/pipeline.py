"""The original's functions on a whole pipeline: a file with LoRA and tokens put on it, or several files at once."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from loractl.compat.files import Embeds, Loras, load_safeloras_both
from loractl.compat.patch import attach, monkeypatch_remove_lora
from loractl.compat.places import DEFAULT_TARGET_REPLACE, TEXT_ENCODER_DEFAULT_TARGET_REPLACE, match, pairs, within
from loractl.compat.wrappers import Wrapper
from loractl.errors import JobError, MismatchError
from loractl.formats.pickles import is_pickle
from loractl.inject.tokens import add_tokens, token_parameters
from loractl.tensors.algebra import stack
from loractl.tensors.lowrank import LowRank

Placed = dict[str, dict[str, LowRank]]
"""Network → path → update."""


def patch_pipe(
    pipe: Any,
    maybe_unet_path: str | Path,
    token: str | list[str] | None = None,
    r: int = 4,  # noqa: ARG001  the tensors say their ranks
    patch_unet: bool = True,
    patch_text: bool = True,
    patch_ti: bool = True,
    idempotent_token: bool = True,
    unet_target_replace_module: Collection[str] = DEFAULT_TARGET_REPLACE,
    text_target_replace_module: Collection[str] = TEXT_ENCODER_DEFAULT_TARGET_REPLACE,
) -> Embeds:
    """Puts a .safetensors, or a .pt with those beside it, on the pipeline and returns the file's tokens.

    The classes are for .pt files, which do not name them. `token` chooses some of the file's tokens. After an error
    the pipeline is as it was.
    """
    path = _first_of_three(Path(maybe_unet_path))
    loras, embeds = load_safeloras_both(path)
    if is_pickle(path):
        targets = {"unet": list(unet_target_replace_module), "text_encoder": list(text_target_replace_module)}
        loras = {name: (tensors, ranks, targets[name]) for name, (tensors, ranks, _) in loras.items()}
    left_out = {name for name, wanted in {"unet": patch_unet, "text_encoder": patch_text}.items() if not wanted}
    placed = _place(pipe, {name: lora for name, lora in loras.items() if name not in left_out})
    if patch_ti and embeds:
        apply_learned_embed_in_clip(embeds, pipe.text_encoder, pipe.tokenizer, token, idempotent_token)
    for name, modules in placed.items():
        attach(getattr(pipe, name), modules)
    return embeds


def apply_learned_embed_in_clip(
    learned_embeds: Mapping[str, Tensor],
    text_encoder: Any,
    tokenizer: Any,
    token: str | list[str] | None = None,
    idempotent: bool = False,
) -> str:
    """Teaches the pair the tokens, all or those of `token`, and returns the last one's name.

    A name that is taken gets a number, `<s1-1>`, or, if idempotent, its vector is replaced.
    """
    wanted = [token] if isinstance(token, str) else token or list(learned_embeds)
    for word in wanted:
        if word not in learned_embeds:
            raise JobError(f"there is no token {word} to learn: the tokens are {', '.join(sorted(learned_embeds))}")
    vectors = {word: learned_embeds[word].detach().reshape(-1, learned_embeds[word].shape[-1]) for word in wanted}
    there = token_parameters(text_encoder) if idempotent else {}
    if not idempotent:
        vectors = {_unused(word, tokenizer): rows for word, rows in vectors.items()}
    for word, rows in vectors.items():
        if word in there and there[word].shape != rows.shape:
            raise MismatchError(f"the token {word} is {tuple(there[word].shape)} on the model, not {tuple(rows.shape)}")
    add_tokens(tokenizer, text_encoder, {word: rows for word, rows in vectors.items() if word not in there})
    for word in vectors.keys() & there.keys():
        there[word].data.copy_(vectors[word])
    return list(vectors)[-1]


class LoRAManager:
    """Several files on one pipeline, each with a scale of its own: ranks side by side, so that the sum is exact.

    The tokens of file i (from 0) are called `<si-0>`, `<si-1>`, … What LoRA the pipeline had is taken off.
    """

    def __init__(self, lora_paths_list: Sequence[str | Path], pipe: Any) -> None:
        self.lora_paths_list, self.pipe = list(lora_paths_list), pipe
        files = [load_safeloras_both(path) for path in lora_paths_list]
        self.token_size_list = [len(embeds) for _, embeds in files]
        placed = [_place(pipe, loras) for loras, _ in files]
        renamed = {
            f"<s{i}-{j}>": embeds[token]
            for i, (_, embeds) in enumerate(files)
            for j, token in enumerate(sorted(embeds))
        }
        if renamed:
            apply_learned_embed_in_clip(renamed, pipe.text_encoder, pipe.tokenizer, idempotent=True)
        self._layers: list[tuple[Wrapper, list[int]]] = []  # with the rank of each file in it
        for name in dict.fromkeys(chain(*placed)):
            self._join(getattr(pipe, name), [each.get(name, {}) for each in placed])

    def tune(self, scales: Sequence[float]) -> None:
        """A scale for each file, in all its networks."""
        if len(scales) != len(self.lora_paths_list):
            raise JobError(f"{len(scales)} scales are not one for each of the {len(self.lora_paths_list)} files")
        for layer, ranks in self._layers:
            layer.set_selector_from_diag(torch.tensor(scales).repeat_interleave(torch.tensor(ranks)))

    def prompt(self, prompt: str | None) -> str | None:
        """The prompt with the tokens of the first file for `<1>`, those of the second for `<2>`, …"""
        for i, size in enumerate(self.token_size_list if prompt else ()):
            prompt = cast(str, prompt).replace(f"<{i + 1}>", "".join(f"<s{i}-{j}>" for j in range(size)))
        return prompt

    def _join(self, network: nn.Module, files: Sequence[Mapping[str, LowRank]]) -> None:
        monkeypatch_remove_lora(network)
        ranks = {path: [each[path].rank if path in each else 0 for each in files] for path in chain(*files)}
        modules = {path: stack([each[path] for each in files if path in each]) for path in ranks}
        self._layers += [(layer, ranks[path]) for path, layer in attach(network, modules).items()]


def _place(pipe: Any, loras: Loras) -> Placed:
    """Where each update of a file belongs. MismatchError for a network that the pipeline lacks."""
    placed = {}
    for name, (tensors, _, classes) in loras.items():
        network = getattr(pipe, name, None)
        if network is None:
            raise MismatchError(f"the LoRA has a part for the {name}, which the pipeline does not have")
        placed[name] = match(within(network, classes), pairs(tensors))
    return placed


def _first_of_three(path: Path) -> Path:
    """X.pt for itself, X.ti.pt and X.text_encoder.pt."""
    for end in (".ti.pt", ".text_encoder.pt"):
        if path.name.endswith(end):
            return path.with_name(f"{path.name.removesuffix(end)}.pt")
    return path


def _unused(token: str, tokenizer: Any) -> str:
    """The token, or the first of `<s1-1>`, `<s1-2>`, … that the tokenizer does not have."""
    vocabulary = tokenizer.get_vocab()
    stem, end = (token[:-1], ">") if token.endswith(">") else (token, "")
    names = chain([token], (f"{stem}-{number}{end}" for number in count(1)))
    return next(name for name in names if name not in vocabulary)
