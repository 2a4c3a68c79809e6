"""The lab's scores against values worked out by hand."""

import pytest

from loractl.lab.scenes import PLACES, SUBJECT_ATTRIBUTES
from loractl.lab.scores import class_drift, common_subject, place_prompts, prompt_fidelity, subject_fidelity

SUBJECT = dict.fromkeys(SUBJECT_ATTRIBUTES, "x")


def test_fidelity_is_the_share_of_attributes() -> None:
    half = {**SUBJECT, **dict.fromkeys(SUBJECT_ATTRIBUTES[:4], "y")}
    assert subject_fidelity([SUBJECT, half], SUBJECT) == pytest.approx(0.75)


def test_the_subject_is_what_most_pictures_show() -> None:
    odd = {**SUBJECT, "color": "y"}
    assert common_subject([SUBJECT, odd, SUBJECT]) == SUBJECT


def test_prompt_fidelity() -> None:
    assert prompt_fidelity([{"background": "sea"}, {"background": "snow"}], ["sea", "sea"]) == 0.5


def test_drift_is_total_variation_over_seven_attributes() -> None:
    red = {**SUBJECT, "color": "red"}
    assert class_drift([SUBJECT], [SUBJECT]) == 0
    assert class_drift([SUBJECT, SUBJECT], [SUBJECT, red]) == pytest.approx(0.5 / 7)
    assert class_drift([SUBJECT], [dict.fromkeys(SUBJECT_ATTRIBUTES, "z")]) == 1


def test_places_take_turns() -> None:
    prompts = place_prompts(["a sks critter"], 20)
    assert prompts[0] == ("a sks critter on the grass", "grass") == prompts[10]
    assert len({place for _, place in prompts}) == 10


def test_every_prompt_goes_to_every_place() -> None:
    prompts = place_prompts(["one", "two"], 40)
    assert {prompt for prompt, _ in prompts} == {
        f"{name} {words}" for name in ("one", "two") for words in PLACES.values()
    }
    assert prompts[:20] == prompts[20:]
