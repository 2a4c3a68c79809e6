"""Optimizers by name or dotted path, with a rate and, where it differs, a weight decay for each group."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loractl.errors import InputError
from loractl.train.loop import Group


@dataclass(frozen=True)
class _Kind:
    """A class by its dotted path, which of the common settings it `takes`, and what it is given besides.

    `extra` is the part of loractl to install when its package is missing; `one_rate` means that no group may differ.
    """

    path: str
    takes: Sequence[str] = ("betas", "weight_decay", "eps")
    given: Mapping[str, Any] = field(default_factory=dict)
    extra: str | None = None
    one_rate: bool = False


_KINDS: Mapping[str, _Kind] = {
    # Loshchilov & Hutter 2019; all parameters in one fused call
    "adamw": _Kind("torch.optim.AdamW", given={"fused": True}),
    # Shazeer & Stern 2018, at the group's rate: scaled by a parameter's size, LoRA's `up`, which starts at 0, rests
    "adafactor": _Kind(
        "transformers.optimization.Adafactor",
        takes=("weight_decay",),
        given={"relative_step": False, "scale_parameter": False},
    ),
    # Mishchenko & Defazio 2023; its rate is a factor of the one that it finds, and 1 is usual
    "prodigy": _Kind("prodigyopt.Prodigy", extra="prodigy", one_rate=True),
    # Defazio et al. 2024, "The Road Less Scheduled"
    "schedulefree-adamw": _Kind("schedulefree.AdamWScheduleFree", extra="schedulefree"),
    "lion": _Kind("loractl.train.lion.Lion", takes=("betas", "weight_decay")),
    # Dettmers et al. 2021
    "adamw8bit": _Kind("bitsandbytes.optim.AdamW8bit", extra="8bit"),
}


def make_optimizer(
    groups: Sequence[Group],
    name: str,
    *,
    betas: tuple[float, float] | None = None,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
    options: Mapping[str, Any] = {},
) -> torch.optim.Optimizer:
    """The optimizer, its `param_groups` one to one and in order with the groups.

    Without `betas` it has its class's own, as Lion's are not AdamW's. `options` go to its class and override the rest;
    a class named by its dotted path gets nothing else but each group's own rate and weight decay. InputError when
    there is no such class or it does not take what it is given.
    """
    kind = _kind(name)
    cls = _load(kind, name)
    _check_options(cls, options, name)
    if kind.one_rate and len({group.lr for group in groups}) > 1:
        raise InputError(f"{name} finds one rate for all: give every group the same learning rate, usually 1")
    common = {"betas": betas, "weight_decay": weight_decay, "eps": eps}
    said = {key: common[key] for key in kind.takes if common[key] is not None}
    settings = said | dict(kind.given) | dict(options)
    try:
        return cls([_settings(group) for group in groups], **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} refuses its settings {settings}: {error}") from error


def _kind(name: str) -> _Kind:
    if name in _KINDS:
        return _KINDS[name]
    if "." in name:
        return _Kind(name, takes=())
    near = difflib.get_close_matches(name, _KINDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KINDS)}, or a class by its dotted path"
    raise InputError(f"there is no optimizer {name!r}: {hint}")


def _load(kind: _Kind, name: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, cls = kind.path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ImportError as error:
        package = module.partition(".")[0]
        advice = f"pip install 'loractl[{kind.extra}]'" if kind.extra else f"install {package}, or mend the path"
        raise InputError(f"the optimizer {name} needs the package {package} ({error}): {advice}") from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"{kind.path} is not an optimizer: name a subclass of torch.optim.Optimizer")
    return found


def _check_options(cls: Callable[..., torch.optim.Optimizer], options: Mapping[str, Any], name: str) -> None:
    takes = inspect.signature(cls).parameters
    known = [key for key in takes if key not in ("params", "lr")]  # both are the groups'
    unknown = [key for key in options if key not in known]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        raise InputError(f"{name} does not take {', '.join(unknown)}: its options are {', '.join(known)}")


def _settings(group: Group) -> dict[str, Any]:
    own = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
    return {"params": list(group.parameters), "lr": group.lr, **own}
