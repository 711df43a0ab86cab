"""One way to measure a model: a measurement gives scores.

The words, as they are used everywhere:

- a *task* makes rows of token ids with some tokens to predict (:mod:`plait.data.tasks`);
- a *benchmark* makes prompts in words and scores answers (:mod:`plait.benchmarks`);
- a *measurement* is one thing to measure of a model: a task or a benchmark at its settings, a text, a set of lm-eval,
  the speed of decoding (:class:`~plait.evaluation.measurement.Measurement`);
- a *score* is one number that a measurement gives, with interval, unit and number of samples
  (:class:`~plait.evaluation.score.Score`);
- a *result* is what was measured of which model, with its scores, ready for JSON (:mod:`plait.evaluation.results`);
- a *suite* is a named set of measurements (:mod:`plait.evaluation.suites`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.evaluation.ar_hits import ar_hits
    from plait.evaluation.measurement import Measurement
    from plait.evaluation.run import evaluate, train_and_evaluate
    from plait.evaluation.score import Score

__all__ = ["Measurement", "Score", "ar_hits", "evaluate", "train_and_evaluate"]

_EXPORTS = {
    "Measurement": "plait.evaluation.measurement",
    "Score": "plait.evaluation.score",
    "ar_hits": "plait.evaluation.ar_hits",
    "evaluate": "plait.evaluation.run",
    "train_and_evaluate": "plait.evaluation.run",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plait.evaluation' has no attribute {name!r}")
