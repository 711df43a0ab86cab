"""Names that scripts import from the package of training, though their code stands on lower floors."""

from __future__ import annotations


def test_run_files_and_their_models_are_found_under_training() -> None:
    from plait.models import architecture as models
    from plait.runs import config as runs
    from plait.training import architecture, config

    assert config.load_run_config is runs.load_run_config
    assert architecture.build_model_config is models.build_model_config
