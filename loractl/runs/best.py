"""The best of the steps that were scored on the way (`eval.keep_best`): a checkpoint that knows its score."""

from collections.abc import Mapping

from loractl.errors import InputError
from loractl.sections import TrainingSpec
from loractl.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from loractl.train.loop import Training


class Best:
    def __init__(self, spec: TrainingSpec) -> None:
        self.score, self.folder = spec.eval.keep_best, spec.checkpoints() / "best"
        self.value, self.step = float("-inf"), 0

    def offer(self, scores: Mapping[str, float], training: Training) -> None:
        """Keeps the step that was scored if it is better than those before."""
        if self.score is None:
            return
        if self.score not in scores:
            raise InputError(f"eval.keep_best names {self.score!r}, but this run measures {', '.join(scores)} alone")
        if scores[self.score] > self.value:
            self.value, self.step = scores[self.score], training.step
            tensors, values = training.state()
            values |= {"score": self.score, "value": self.value}
            save_checkpoint(self.folder, tensors, values, step=self.step, keep=1)

    def go_on_from(self, step: int) -> None:
        """Takes up what was kept up to this step, by the score that the job names now: others don't compare."""
        path = latest_checkpoint(self.folder) if self.score else None
        values = load_checkpoint(path)[1] if path else {}
        if values.get("score") == self.score and values.get("step", step + 1) <= step:
            self.value, self.step = values["value"], values["step"]

    def restore(self, training: Training) -> bool:
        """Puts the best step back; whether there is one."""
        path = latest_checkpoint(self.folder) if self.step else None
        if path is not None:
            training.restore(*load_checkpoint(path))
        return path is not None
