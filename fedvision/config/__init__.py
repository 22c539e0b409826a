"""The experiment as people write it, one module for what is near to each other in a file."""

from fedvision.config.experiment import ExperimentConfig
from fedvision.config.network import LoraConfig, LossConfig, ModelConfig, PartitionConfig
from fedvision.config.rounds import ClockConfig, EvaluationConfig, PrivacyConfig, RoundConfig
from fedvision.config.training import TrainingConfig, TransformConfig

__all__ = [
    "ClockConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "PartitionConfig",
    "PrivacyConfig",
    "RoundConfig",
    "TrainingConfig",
    "TransformConfig",
]
