"""Score a model with adapters: was the subject learnt, are prompts followed, what was forgotten, what was copied."""

from collections.abc import Sequence
from typing import Any

from loractl.events import Emit
from loractl.hookspecs import hookimpl
from loractl.method import Method, Outcome
from loractl_eval.command import evaluate
from loractl_eval.spec import EvalSpec


def start(spec: EvalSpec, emit: Emit) -> Outcome:
    from loractl_eval.run import run

    return run(spec, emit)


@hookimpl
def register_methods() -> Sequence[Method[Any]]:
    return [Method("eval", "Score a model with adapters.", EvalSpec, start, evaluate)]
