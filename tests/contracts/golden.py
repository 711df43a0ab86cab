"""Write the golden logits again: ``python tests/contracts/golden.py`` (only when numbers are meant to change)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from contracts.checks import GOLDEN, cases, golden_logits

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in cases():
        rows = [[round(value, 9) for value in row] for row in golden_logits(case).tolist()]
        (GOLDEN / f"{case}.json").write_text(json.dumps({"case": case, "logits": rows}) + "\n")
        print(case)
