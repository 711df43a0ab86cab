"""What a training is told: the run file of :mod:`plait.runs.config`, under the name of the package that reads it."""

from plait.runs.config import RunConfig, load_run_config

__all__ = ["RunConfig", "load_run_config"]
