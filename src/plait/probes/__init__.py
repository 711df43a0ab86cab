"""Measurements inside models: each a context manager that leaves a typed table and a figure."""

from plait.probes.contract import Probe, probe
from plait.probes.masking import Masked, MaskedHeads, masking_experiment
from plait.probes.needles import NeedleRun, task_runs, text_runs

__all__ = ["Masked", "MaskedHeads", "NeedleRun", "Probe", "masking_experiment", "probe", "task_runs", "text_runs"]
