"""GPUs are found by the names that people and drivers give them."""

import pytest

from loractl.errors import InputError
from loractl.plan.gpus import GPUS, find, recognize


@pytest.mark.parametrize("name", ["RTX 4090", "rtx 4090", "4090", "NVIDIA GeForce RTX 4090"])
def test_a_gpu_has_many_spellings(name: str) -> None:
    assert find(name) == GPUS["rtx 4090"]


def test_an_unknown_gpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean .*RTX 4090"):
        find("RTX 4091")


@pytest.mark.parametrize(
    ("driver", "row"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx 4070 ti"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_driver_s_name_finds_its_row(driver: str, row: str) -> None:
    assert recognize(driver) == GPUS[row]
    assert recognize("Matrox G200") is None
