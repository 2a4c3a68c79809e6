"""Which parameter of an adapter learns at which rate."""

from torch.nn import Parameter

from loractl.inject.inject import adapter_parameters, inject
from loractl.inject.targets import resolve
from loractl.train.loop import Group
from loractl.train.optim import make_optimizer
from loractl.train.rates import grouped, lora_plus
from tests.inject.models import tiny_unet


def adapter() -> dict[str, Parameter]:
    model = tiny_unet()
    inject(model, resolve(model, ["extended"], rank=2))
    return adapter_parameters(model)


def rates_by_name(groups: list[Group], parameters: dict[str, Parameter]) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    pairs = [(names[id(parameter)], group.lr) for group in groups for parameter in group.parameters]
    assert len(pairs) == len(dict(pairs)) == len(parameters), "each parameter is in one group"
    return dict(pairs)


def test_the_last_pattern_that_matches_gives_the_rate() -> None:
    parameters = adapter()
    groups = grouped("denoiser", parameters, 1e-4, {"attention": 2e-4, "attn2.to_k": 3e-4, "conv1": 4e-4})
    rates = rates_by_name(groups, parameters)
    for name, rate in rates.items():
        expected = 1e-4
        if "attn" in name:
            expected = 3e-4 if "attn2.to_k." in name else 2e-4
        elif ".conv1." in name:
            expected = 4e-4
        assert rate == expected, name
    assert {group.name: group.lr for group in groups} == {
        "denoiser": 1e-4,
        "denoiser:attention": 2e-4,
        "denoiser:attn2.to_k": 3e-4,
        "denoiser:conv1": 4e-4,
    }


def test_without_a_table_there_is_one_group_and_no_group_is_empty() -> None:
    parameters = adapter()
    (group,) = grouped("denoiser", parameters, 1e-4, {})
    assert (group.name, group.lr, len(group.parameters)) == ("denoiser", 1e-4, len(parameters))
    assert [group.name for group in grouped("denoiser", parameters, 1e-4, {"conv1": 1.0, "*": 2.0})] == ["denoiser:*"]


def test_lora_plus_raises_the_rate_of_up_alone() -> None:
    parameters = adapter()
    base = Group("denoiser", list(parameters.values()), 1e-4, weight_decay=0.5)
    groups = lora_plus(base, parameters, 16.0)
    assert [group.name for group in groups] == ["denoiser:down", "denoiser:up"]
    assert {group.weight_decay for group in groups} == {0.5}
    for name, rate in rates_by_name(groups, parameters).items():
        assert rate == (16 * 1e-4 if name.endswith(".up") else 1e-4)
    optimizer = make_optimizer(groups, "adamw")
    assert optimizer.param_groups[1]["lr"] == 16 * optimizer.param_groups[0]["lr"]
