"""Trainings in lockstep are the trainings alone, whatever their lengths, rates and accumulated batches."""

from collections.abc import Callable, Mapping

import pytest
from torch import Tensor

from loractl.errors import NumericsError
from loractl.events import Event, Progress
from loractl.train.fleet import Turns, fit_together
from loractl.train.loop import Plan
from tests.train.network import OPTIMIZERS, Network, ignore, phases, same

PLANS = {
    "short": Plan(4, max_grad_norm=None),
    "long": Plan(14, active=phases, ema=0.9),
    "accumulating": Plan(6, grad_accum=3, max_grad_norm=0.1, schedule="cosine", warmup_steps=2),
}


class Crew:
    """Networks of one optimizer under their own plans."""

    def __init__(self, optimizer: str = "adamw", plans: Mapping[str, Plan] = PLANS) -> None:
        self.networks = {name: Network(plan, optimizer) for name, plan in plans.items()}
        self.lines: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in plans}

    def loss(self, turns: Turns, part: int) -> list[dict[str, Tensor]]:
        return [{name: self.networks[name].loss(step, part) for name, step in turns.items()}]

    def fit(self, after: Callable[[Turns], None] = lambda _: None, emit: Callable[[Event], None] = ignore) -> None:
        trainings = {name: network.training for name, network in self.networks.items()}
        fit_together(trainings, self.loss, self.forget, emit, after, on_numbers=self.note)

    def note(self, told: Mapping[str, tuple[int, Mapping[str, float]]]) -> None:
        for name, (step, numbers) in told.items():
            self.lines[name].append((step, dict(numbers)))

    def forget(self) -> None:
        for network in self.networks.values():
            for weight in network.weights.values():
                weight.grad = None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_is_to_the_bit_what_it_is_alone(optimizer: str) -> None:
    crew, events = Crew(optimizer), list[Event]()
    crew.fit(emit=events.append)
    for name, network in crew.networks.items():
        alone = Network(PLANS[name], optimizer)
        alone.fit()
        assert same(network.everything(), alone.everything())
        assert network.training.losses == alone.training.losses
        assert [step for step, _ in crew.lines[name]] == list(range(1, PLANS[name].steps + 1))
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(i, 14) for i in range(1, 15)]


def test_each_goes_on_from_its_own_checkpoint() -> None:
    whole, broken = Crew(), Crew()
    whole.fit()
    kept = {}

    def stop(turns: Turns) -> None:
        for name, done in turns.items():
            if done == {"short": 4, "long": 5, "accumulating": 2}[name]:  # as when it was killed between two writes
                kept[name] = broken.networks[name].training.state()
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.fit(stop)
    again = Crew()
    for name, state in kept.items():
        again.networks[name].training.restore(*state)
    again.fit()
    for name, network in again.networks.items():
        assert same(network.everything(), whole.networks[name].everything())


def test_a_loss_that_is_not_finite_names_its_training() -> None:
    crew = Crew(plans={"one": Plan(5), "two": Plan(5)})

    def loss(turns: Turns, part: int) -> list[dict[str, Tensor]]:
        (values,) = Crew.loss(crew, turns, part)
        return [{name: value / 0 if (name, turns[name]) == ("two", 2) else value for name, value in values.items()}]

    crew.loss = loss  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="two, step 3: the loss is inf"):
        crew.fit()
    assert len(crew.networks["one"].training.losses) == 3  # looked at, but not stepped
    assert crew.networks["one"].training.step == 2
