"""The model of a training: :mod:`plait.models.architecture`, under the name of the package that trains it."""

from plait.models.architecture import build_model_config

__all__ = ["build_model_config"]
