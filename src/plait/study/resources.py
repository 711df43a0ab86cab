"""What a trial asks of the machine that runs it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from plait.sections import Positive, Strict


class Resources(Strict):
    """Needs of one trial; only a cluster acts on them (docs/cluster.md).

    Args:
        cpus: cores of each process, which are its threads as well.
        gpus: of each process.
        processes: of one trial; more than one train the same model together, each on ``batch_size`` sequences a step.
        retries: how often a trial starts again after its process or its machine was lost.
    """

    cpus: Positive = 1
    gpus: Annotated[int, Field(ge=0)] = 0
    processes: Positive = 1
    retries: Annotated[int, Field(ge=0)] = 3

    def __str__(self) -> str:
        one = f"{self.cpus} CPU" + (f" and {self.gpus} GPU" if self.gpus else "")
        return one if self.processes == 1 else f"{self.processes} x {one}"
