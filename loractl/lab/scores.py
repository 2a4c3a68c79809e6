"""What the reader says of a trained subject on the lab: fidelity to it, fidelity to the prompt, and what the class
forgot.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from loractl.lab.scenes import PLACES, SUBJECT_ATTRIBUTES

Reading = Mapping[str, str]
DRIFTING = tuple(name for name in SUBJECT_ATTRIBUTES if name != "kind")


def place_prompts(prompts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(prompt with a place in it, the place's name), each prompt in all ten places before the next takes its turn."""
    names = list(PLACES)
    turns = [(prompts[i // len(names) % len(prompts)], names[i % len(names)]) for i in range(count)]
    return [(f"{prompt} {PLACES[name]}", name) for prompt, name in turns]


def place_in(prompt: str) -> str | None:
    """The place at the end of a prompt."""
    return next((name for name, words in PLACES.items() if prompt.endswith(words)), None)


def common_subject(readings: Sequence[Reading]) -> dict[str, str]:
    """The subject of several pictures: for each attribute the value read most often."""
    return {name: Counter(reading[name] for reading in readings).most_common(1)[0][0] for name in SUBJECT_ATTRIBUTES}


def subject_share(reading: Reading, subject: Reading) -> float:
    """The share of the subject's eight attributes that are read in a picture."""
    return sum(reading[name] == subject[name] for name in SUBJECT_ATTRIBUTES) / len(SUBJECT_ATTRIBUTES)


def subject_fidelity(readings: Sequence[Reading], subject: Reading) -> float:
    """The share of the subject's eight attributes that are read in the samples."""
    return sum(subject_share(reading, subject) for reading in readings) / len(readings)


def prompt_fidelity(readings: Sequence[Reading], places: Sequence[str]) -> float:
    """The share of samples in the place their prompt asks for."""
    hits = [reading["background"] == place for reading, place in zip(readings, places, strict=True)]
    return sum(hits) / len(hits)


def class_drift(before: Sequence[Reading], after: Sequence[Reading]) -> float:
    """Total variation between the distributions of each attribute in samples of the class prompt, averaged over the
    attributes: 0 when nothing changed, 1 when nothing is left."""
    return sum(_total_variation([r[n] for r in before], [r[n] for r in after]) for n in DRIFTING) / len(DRIFTING)


def _total_variation(before: Sequence[str], after: Sequence[str]) -> float:
    p, q = Counter(before), Counter(after)
    return sum(abs(p[value] / len(before) - q[value] / len(after)) for value in p.keys() | q.keys()) / 2
