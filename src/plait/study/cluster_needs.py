"""Whether the machines of a cluster can ever run what trials ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.errors import StudyError
from plait.study.resources import Resources
from plait.study.trials import Trial


@dataclass(frozen=True)
class Machine:
    """What one machine has in all, busy or not.

    Args:
        cpus, gpus: whole ones.
    """

    cpus: int
    gpus: int

    def holds(self, needs: Resources) -> int:
        """Processes of a trial that fit at once."""
        by_cpu = self.cpus // needs.cpus
        return min(by_cpu, self.gpus // needs.gpus) if needs.gpus else by_cpu


def fits_one_machine(needs: Resources, machines: Sequence[Machine]) -> bool:
    """Whether all processes of a trial fit on one machine."""
    return any(machine.holds(needs) >= needs.processes for machine in machines)


def check_needs(trials: Sequence[Trial], machines: Sequence[Machine], several_machines: bool = True) -> None:
    """See that every trial could run if the cluster were idle.

    Args:
        trials: to be run.
        machines: that are there.
        several_machines: a trial's processes may spread over machines, which takes a shared file system.

    Raises:
        StudyError: naming a trial that could not, what it asks for and what there is.
    """
    for trial in trials:
        needs = trial.resources
        if fits_one_machine(needs, machines):
            continue
        if several_machines and sum(machine.holds(needs) for machine in machines) >= needs.processes:
            continue
        there = ", ".join(f"{m.cpus} CPU + {m.gpus} GPU" for m in dict.fromkeys(machines)) or "none"
        where = "the cluster" if several_machines else "one machine (a trial over several needs a shared file system)"
        raise StudyError(
            f"Trial {trial.label!r} asks for {needs}, which {where} cannot hold; machines: {there}. "
            "Lower 'resources' in the study file, add a machine, or use --autoscaling if one will join."
        )
