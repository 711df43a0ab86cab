"""Several choices for one context are scored faster than by lm-eval's own model.

Prints its measurements: ``PLAIT_SHARED_DATA=DIR pytest -n 0 -s -m slow tests/evaluation/harness/test_harness_speed.py``
takes the sets from ``DIR/harness``, and rows of the same shape where there are none. CPU time counts, since others may
use the machine.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from evaluation.harness.samples import MODELS, lm_eval_model, write_rows
from plait.data.tokenizers import byte_tokenizer
from plait.evaluation.harness.model import HarnessModel
from plait.evaluation.harness.tasks import folder_tasks

LIMIT, REPEATS, THEIR_BATCH_SIZE = 50, 3, 8
SHARED = Path(os.environ.get("PLAIT_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data")) / "harness"

#: Bytes of a query and of a choice, and choices, as in the sets of these names.
SHAPES = {"arc_easy": (110, 22, 4), "openbookqa": (60, 18, 4), "piqa": (45, 95, 2)}


def made_up_rows(name: str) -> list[dict[str, Any]]:
    """Rows without meaning, with lengths around those of the set."""
    draw = random.Random(name)
    query, choice, choices = SHAPES[name]

    def text(length: int) -> str:
        return "".join(draw.choice("etaoin shrdlu") for _ in range(draw.randint(length // 2, 3 * length // 2)))

    return [
        {"query": "Question: " + text(query), "choices": ["c" + text(choice) for _ in range(choices)], "gold": 0}
        for _ in range(LIMIT)
    ]


def requests(folder: Path, name: str, scratch: Path) -> list[Instance]:
    scratch.mkdir()
    [task] = folder_tasks([name], folder, scratch)["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=LIMIT, rank=0, world_size=1)
    return list(task.instances)


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_choices_are_scored_faster(name: str, task: str, tmp_path: Path) -> None:
    model = MODELS[name](hidden_size=256, layers=4)
    folder = SHARED if SHARED.is_dir() else write_rows(tmp_path, {task: made_up_rows(task)})
    instances = requests(folder, task, tmp_path / "scratch")
    theirs = lm_eval_model(model, byte_tokenizer(), 1024)
    theirs.batch_size_per_gpu = THEIR_BATCH_SIZE
    ours = HarnessModel(model, byte_tokenizer(), max_length=1024)
    assert ours.scorer.shares_state
    ratios = []
    for _ in range(REPEATS):  # turn about
        slow = seconds(lambda: theirs.loglikelihood(instances, disable_tqdm=True))
        ratios.append(slow / seconds(lambda: ours.loglikelihood(instances)))
    middle = statistics.median(ratios)
    print(f"\n{name:8}{task:12}{middle:.2f} times as fast as lm-eval's model ({min(ratios):.2f} to {max(ratios):.2f})")
    assert middle > 1
