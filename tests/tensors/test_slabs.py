"""Tensors side by side in memory are like those they stand for, and share nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loractl.tensors.slabs import LINE, room_like

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def models() -> dict[str, Tensor]:
    conv = torch.randn(6, 4, 3, 3)
    return {
        "linear": torch.randn(5, 7),
        "bias": torch.randn(5),
        "conv": conv,
        "channels last": conv.to(memory_format=torch.channels_last),
        "transposed": torch.randn(5, 7).T,
        "cut out": torch.randn(9, 9)[2:5, 1:3],
        "half": torch.randn(3, 3).half(),
        "empty": torch.empty(0, 4),
        "one": torch.tensor(1.0),
    }


def test_each_is_like_its_model_and_none_writes_into_another() -> None:
    wanted = models()
    made = room_like(wanted)
    assert made.keys() == wanted.keys()
    for name, each in made.items():
        assert each.dtype == wanted[name].dtype and each.shape == wanted[name].shape
        assert each.stride() == torch.empty_like(wanted[name]).stride()
        each.copy_(wanted[name])
    for name, each in made.items():
        assert torch.equal(each, wanted[name]), name


@given(st.lists(st.integers(1, 300), min_size=1, max_size=20), st.sampled_from(DTYPES), st.integers(1, 4096))
def test_they_are_aligned_and_lie_in_pieces_up_to_the_limit(sizes: list[int], dtype: torch.dtype, limit: int) -> None:
    made = room_like({str(number): torch.empty(size, dtype=dtype) for number, size in enumerate(sizes)}, limit)
    starts = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in made.values()}
    for each in made.values():
        assert each.data_ptr() % LINE == 0
        own = -(-each.nbytes // LINE) * LINE
        assert each.untyped_storage().nbytes() <= max(limit, own)
    assert sum(starts.values()) == sum(-(-each.nbytes // LINE) * LINE for each in made.values())
    assert limit < sum(starts.values()) or len(starts) == 1
