"""Which precision a run takes by itself."""

import pytest
import torch

from loractl.device import pick_dtype


@pytest.mark.parametrize(("emulated", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_bf16_is_taken_where_the_gpu_computes_in_it(
    emulated: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where it is emulated, as on a T4 or V100."""

    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert pick_dtype("auto", torch.device("cuda")) == dtype
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
