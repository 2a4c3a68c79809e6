"""The sections of a job that trains."""

from loractl.sections.data import DataSection, SourceSection
from loractl.sections.learning import AdapterSection, EmbeddingSection, PriorSection, SubjectSection, TargetSettings
from loractl.sections.training import EvalSection, LogSection, LossSection, OptimizerSection, TrainingSpec, TrainSection

__all__ = [
    "AdapterSection",
    "DataSection",
    "EmbeddingSection",
    "EvalSection",
    "LogSection",
    "LossSection",
    "OptimizerSection",
    "PriorSection",
    "SourceSection",
    "SubjectSection",
    "TargetSettings",
    "TrainSection",
    "TrainingSpec",
]
