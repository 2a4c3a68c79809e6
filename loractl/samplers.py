"""The names of sampling methods, as plain data: what a job may call one, and what A1111 and diffusers call it.

LMS is not among them: diffusers' needs scipy, which nothing else here does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampler:
    """A1111's name for a method, diffusers' class, and the settings that make the class that method."""

    label: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


# Where the noise levels lie: by the model's own steps, or as Karras et al. 2022 (equation 5) have them.
_OWN = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_KARRAS = _OWN | {"use_karras_sigmas": True}
_ODE = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIM", "DDIMScheduler"),
    "ddpm": Sampler("DDPM", "DDPMScheduler"),
    "plms": Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
    "euler": Sampler("Euler", "EulerDiscreteScheduler", _OWN),
    "euler-karras": Sampler("Euler Karras", "EulerDiscreteScheduler", _KARRAS),
    "euler-a": Sampler("Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": Sampler("Heun", "HeunDiscreteScheduler", _OWN),
    "heun-karras": Sampler("Heun Karras", "HeunDiscreteScheduler", _KARRAS),
    "dpm2": Sampler("DPM2", "KDPM2DiscreteScheduler", _OWN),
    "dpm2-karras": Sampler("DPM2 Karras", "KDPM2DiscreteScheduler", _KARRAS),
    "dpm2-a": Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler", _OWN),
    "dpm2-a-karras": Sampler("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", _KARRAS),
    "dpm++2m": Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", _OWN | _ODE),
    "dpm++2m-karras": Sampler("DPM++ 2M Karras", "DPMSolverMultistepScheduler", _KARRAS | _ODE),
    "dpm++2m-sde": Sampler("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _OWN | _SDE),
    "dpm++2m-sde-karras": Sampler("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", _KARRAS | _SDE),
    "dpm++2s": Sampler("DPM++ 2S", "DPMSolverSinglestepScheduler", _OWN | _ODE),
    "dpm++2s-karras": Sampler("DPM++ 2S Karras", "DPMSolverSinglestepScheduler", _KARRAS | _ODE),
    "deis": Sampler("DEIS", "DEISMultistepScheduler", _OWN | {"algorithm_type": "deis"}),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler", _OWN),
    "lcm": Sampler("LCM", "LCMScheduler"),
}


# Diffusers' classes that can follow a flow where the model's own scheduler, one of diffusion models, does.
FOLLOW_FLOWS = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"}
FOLLOW_FLOWS |= {"DEISMultistepScheduler", "UniPCMultistepScheduler"}


def unfit(name: str, own: Mapping[str, Any]) -> str | None:
    """Why a method of SAMPLERS is not for a model with this configuration of its scheduler, if it is not."""
    sampler = SAMPLERS[name]
    follows = sampler.kind in FOLLOW_FLOWS and not sampler.options.get("use_karras_sigmas")  # a flow has no such levels
    is_flow = "shift" in own or str(own.get("_class_name")).startswith("FlowMatch")
    if is_flow or (own.get("use_flow_sigmas") and not follows):
        return f"{sampler.label} is not for a flow model: leave the scheduler out"
    return None


def find_sampler(name: str) -> str | None:
    """The key in SAMPLERS for a name in anyone's spelling: "DPM++ 2M Karras", "dpmpp_2m", "k_euler_a", a class."""
    return _KNOWN.get(_bare(name))


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower().removeprefix("k_")).replace("dpmpp", "dpm++")


# What kohya's scripts and ComfyUI call them otherwise.
_ALIASES = {
    "pndm": "plms",
    "euler_ancestral": "euler-a",
    "dpm_2_ancestral": "dpm2-a",
    "dpmsolver++": "dpm++2m",
    "dpmsingle": "dpm++2s",
}
_KNOWN = {
    **{_bare(sampler.kind): key for key, sampler in reversed([*SAMPLERS.items()])},  # of a class the first counts
    **{_bare(sampler.label): key for key, sampler in SAMPLERS.items()},
    **{_bare(alias): key for alias, key in _ALIASES.items()},
}
