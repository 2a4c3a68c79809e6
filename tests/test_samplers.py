"""Schedulers by the names that people know."""

import pytest

from loractl.samplers import SAMPLERS, find_sampler

NAMES = {
    "DPM++ 2M Karras": "dpm++2m-karras",  # A1111
    "Euler a": "euler-a",
    "DPM2 a Karras": "dpm2-a-karras",
    "k_euler_a": "euler-a",  # kohya
    "k_dpm_2": "dpm2",
    "dpmsolver++": "dpm++2m",
    "pndm": "plms",
    "dpmpp_2m_sde": "dpm++2m-sde",  # ComfyUI
    "euler_ancestral": "euler-a",
    "uni_pc": "unipc",
    "DPMSolverMultistepScheduler": "dpm++2m",  # diffusers
    "PNDMScheduler": "plms",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_anyones_spelling(name: str) -> None:
    assert find_sampler(name) == NAMES[name]


def test_every_sampler_has_its_own_names() -> None:
    assert [find_sampler(key) for key in SAMPLERS] == [*SAMPLERS]
    assert [find_sampler(sampler.label) for sampler in SAMPLERS.values()] == [*SAMPLERS]
    assert find_sampler("euler b") is None and find_sampler("") is None
