"""Experiment trackers that a run may report to."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from plait.errors import BackendUnavailable, OptionError, nearest

#: Tracker of transformers -> modules of which one must be installed.
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "swanlab": ("swanlab",),
    "codecarbon": ("codecarbon",),
    "dvclive": ("dvclive",),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raise unless every tracker can be used.

    Raises:
        OptionError: a name that is not a tracker.
        BackendUnavailable: its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise OptionError(f"training.report_to: there is no tracker {name!r}.{nearest(name, TRACKERS)}")
        if not any(find_spec(module) for module in TRACKERS[name]):
            package = TRACKERS[name][0].replace("_", "-")
            raise BackendUnavailable(
                f"training.report_to: {name!r} needs the package {package}: pip install {package}, or leave it out."
            )
