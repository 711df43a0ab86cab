"""Whole models of flash-linear-attention at its own initialisation: logits, gradients, left padding, decoding.

Needs fla and Triton: ``make fla-peer`` installs them without a GPU. A case takes minutes, since its kernels are
interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from models.checkpoints import fla_peer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(find_spec, ("fla", "triton"))),
        reason="needs flash-linear-attention and triton: make fla-peer, or pip install --no-deps "
        "flash-linear-attention fla-core einops triton",
    ),
]


@pytest.mark.parametrize("case", fla_peer.CASES)
def test_flas_own_model(tmp_path: Path, case: str) -> None:
    script = [sys.executable, "-W", "ignore", fla_peer.__file__, case, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["spread"] > 0.05
    assert found["logits"] < 1e-5
    assert found["padding"] < 1e-5
    assert found["decoding"] < 1e-5
    assert found["gradient"] < 1e-4
