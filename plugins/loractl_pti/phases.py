"""Which of tokens and adapter learn in a step, in the three modes of pivotal tuning."""

from loractl.runs.recipe import Active
from loractl_pti.spec import PhasesSection

TOKENS = frozenset({"tokens"})
ADAPTER = frozenset({"denoiser", "text_encoder"})


def phases(settings: PhasesSection, steps: int) -> Active:
    """Step → what learns. In turns, the share of the tokens' steps is kept to a turn's length."""
    until = round(settings.token_share * steps)
    if settings.mode == "sequential":
        return lambda step: TOKENS if step < until else ADAPTER
    if settings.mode == "joint":
        return lambda step: TOKENS | ADAPTER if step < until else ADAPTER
    return lambda step: TOKENS if _is_tokens_turn(step // settings.turn, settings.token_share) else ADAPTER


def _is_tokens_turn(turn: int, share: float) -> bool:
    """Spreads the tokens' turns evenly, the first to them: of n turns ⌈n·share⌉ are theirs."""
    return -(-(turn + 1) * share // 1) > -(-turn * share // 1)
