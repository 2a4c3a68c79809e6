"""Which captions are encoded, and which of them are kept."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from loractl.families.family import Family
from loractl.train.conditioning import Conditioner


class Reader:
    """Says of a text how long it is, and remembers what it read."""

    guests = frozenset[str]()
    text_encoder_names = ("text_encoder",)

    def __init__(self) -> None:
        self.read: list[str] = []

    def bring(self, *names: str) -> None:
        """All are there."""

    def told(self, captions: Sequence[str]) -> Tensor:
        self.read += captions
        return torch.tensor([[float(len(caption))] for caption in captions])


def conditioner() -> tuple[Reader, Conditioner]:
    reader: Any = Reader()
    return reader, Conditioner(cast(Family, reader))


def test_captions_that_were_not_expected_are_encoded_and_let_go() -> None:
    reader, condition = conditioner()
    condition.prepare(["a dog"])
    for step in range(50):
        said = condition([f"{step}", "a dog", f"{step}"], learns=False)
        assert isinstance(said, Tensor) and said.flatten().tolist() == [len(str(step)), 5, len(str(step))]
    assert reader.read == ["a dog", *map(str, range(50))]
    assert list(condition._kept) == ["a dog"]


def test_expected_ones_are_kept_when_they_come_up_until_the_words_learn() -> None:
    reader, condition = conditioner()
    condition.expect(["a dog", "a cat"])
    for learns in (False, False, True, False, False):
        condition(["a dog"], learns)
    assert reader.read == ["a dog"] * 3
