"""What models need before they exist: memory of training and of decoding, speed, and the layer plans that fit."""

from plait.planner.memory import InferenceMemory, TrainingMemory, TrainingSetting, inference_memory, training_memory

__all__ = ["InferenceMemory", "TrainingMemory", "TrainingSetting", "inference_memory", "training_memory"]
