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
        ("NVIDIA L40", "l40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A100-SXM4-40GB", "a100 40gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100 32gb"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA GeForce RTX 5060 Ti", "rtx 5060 ti"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_driver_s_name_finds_its_row(driver: str, row: str) -> None:
    assert recognize(driver) == GPUS[row]


@pytest.mark.parametrize("driver", ["Matrox G200", "NVIDIA T400", "NVIDIA A1000"])
def test_a_name_that_only_begins_like_one_of_the_table_is_none_of_it(driver: str) -> None:
    assert recognize(driver) is None
