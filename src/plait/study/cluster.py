"""Runs the trials of a study as Ray tasks on the machines of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plait.errors import BackendUnavailable, OptionError, StudyError
from plait.extras import install_command
from plait.files.writing import write_text
from plait.provenance import versions
from plait.runs import metrics
from plait.study.cluster_needs import Machine, check_needs, fits_one_machine
from plait.study.cluster_node import Launch, Message, Order, check_machine, place, supervise
from plait.study.cluster_storage import Storage
from plait.study.progress import StudyProgress
from plait.study.runner import GRACE, Outcome, outcome, pending_trials
from plait.study.store import Store
from plait.study.trials import Trial

#: Seconds to reach an address, and for every machine to answer once.
CONNECT_SECONDS, CHECK_SECONDS = 5.0, 120.0
#: Seconds between two tries for a trial that another run has, and between two looks at the machines.
BUSY_SECONDS, MACHINES_SECONDS = 2.0, 10.0
#: Bytes of the object store of a private Ray; trials hand over a few lines each.
OBJECT_STORE = 80 * 2**20


def run_on_cluster(
    store: Store,
    trials: Sequence[Trial],
    address: str,
    *,
    storage: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    autoscaling: bool = False,
) -> Outcome:
    """Run what is not done yet; a trial whose machine is lost goes on elsewhere from its last checkpoint.

    Args:
        store: of the study, already written. Without ``storage`` every machine sees its folder at the same path.
        trials: all trials of the study.
        address: ``HOST:PORT`` of Ray's head, ``auto`` for the cluster that this machine belongs to, or ``local`` for
            a private one on this machine.
        storage: URL where trials keep checkpoints and results; they are copied into ``store``'s folder as they end.
        workers: trials at a time; None runs as many as fit.
        retry_failed: run trials again that failed before.
        autoscaling: wait for machines that fit instead of giving up where there are none.

    Raises:
        BackendUnavailable: Ray is not installed.
        StudyError: there is no cluster at ``address``, no machine offers what a trial asks for, a machine does not see
            the folder or has another version of plait.
        OptionError: a storage that cannot be used.
        KeyboardInterrupt: Ctrl-C, after the running trials have saved and published their checkpoints.
    """
    place_of_results = Storage(storage) if storage is not None else None
    store.set_aside_damaged(trials)
    if place_of_results is not None:
        for trial in trials:
            if store.result(trial) is None:
                place_of_results.fetch_records(trial.hash, store.path(trial))
    pending = pending_trials(store, trials, retry_failed)
    if pending:
        with connected(address), StudyProgress(store, trials) as progress:
            asyncio.run(_Run(store, place_of_results, progress, workers, autoscaling).all(pending))
    return outcome(store, trials)


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to Ray; one that the process has already is used and left open.

    Args:
        address: as for :func:`run_on_cluster`.

    Raises:
        BackendUnavailable: Ray is not installed.
        StudyError: no cluster answers.
    """
    if find_spec("ray") is None:
        raise BackendUnavailable(f"A cluster needs Ray, on every machine: {install_command('cluster')}")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # unset, every start prints a warning about it
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    else:
        _check_address(address)
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudyError(f"There is no Ray cluster at {address!r} ({_line(error)}) {_START}") from None
    try:
        yield
    finally:
        ray.shutdown()


_START = "'ray start --head' starts one and prints its address; --cluster local needs none."


def _check_address(address: str) -> None:
    """Raise within seconds where nothing listens; Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise StudyError(f"{address}: Ray Client is not supported; run the command on a machine of the cluster.")
    target = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if target == "auto":
        return
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise StudyError(f"--cluster {address!r}: write auto, local or HOST:PORT, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StudyError(f"There is no Ray cluster at {target!r} ({error}). {_START}") from None


@dataclass
class _Lost(Exception):
    """A trial's process or machine is gone; it may start again."""

    why: str


class _Run:
    """One run of ``plait study run --cluster``."""

    def __init__(
        self,
        store: Store,
        storage: Storage | None,
        progress: StudyProgress,
        workers: int | None,
        autoscaling: bool,
    ) -> None:
        self.store, self.storage, self.progress = store, storage, progress
        self.autoscaling = autoscaling
        self.free = asyncio.Semaphore(workers) if workers is not None else contextlib.nullcontext()
        self.name = uuid.uuid4().hex
        self.study = store.record()
        self.running: dict[str, Trial] = {}
        self.messages: dict[Any, Any] = {}

    async def all(self, pending: Sequence[Trial]) -> None:
        """Until every trial has ended."""
        self._check_needs(pending)
        await self._check_machines(pending[0])
        waiting = {asyncio.create_task(self._trial(trial)): trial for trial in pending}
        looked = time.monotonic()
        try:
            while waiting:
                ended, _ = await asyncio.wait(waiting, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    trial = waiting.pop(task)
                    task.result()
                    self.progress.ended(trial)
                self.progress.update(list(self.running.values()))
                if time.monotonic() - looked > MACHINES_SECONDS:
                    looked = time.monotonic()
                    self._check_needs(list(waiting.values()))
        finally:
            await self._stop(list(waiting))

    def _check_needs(self, trials: Sequence[Trial]) -> None:
        if not self.autoscaling:
            check_needs(trials, _machines(), several_machines=self.storage is None)

    async def _check_machines(self, trial: Trial) -> None:
        """Every machine has this plait and sees the folder; better an error now than one for each trial."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def on(node: str) -> Any:
            where: Any = NodeAffinitySchedulingStrategy(node, soft=False)
            return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(check_machine)

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        order = self._order(trial)
        try:
            await asyncio.wait_for(asyncio.gather(*[on(node).remote(order) for node in nodes]), CHECK_SECONDS)
        except TimeoutError:
            raise StudyError(f"The machines of the cluster did not answer within {CHECK_SECONDS:.0f} s.") from None
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            raise StudyError(f"A machine of the cluster cannot run plait: {_line(error)}") from None

    async def _trial(self, trial: Trial) -> None:
        """Run a trial to its end, whatever is lost on the way; its outcome is in the store."""
        async with self.free:
            lost = 0
            while True:
                try:
                    answer = await (self._alone(trial) if trial.resources.processes == 1 else self._together(trial))
                except _Lost as error:
                    self.store.fail(trial, error.why, killed=True)
                    lost += 1
                    if lost > trial.resources.retries:
                        return
                    again = f"starting again ({lost} of {trial.resources.retries})"
                    self.progress.console.print(f"{trial.label}  {error.why} {again}", markup=False)
                    continue
                finally:
                    self.running.pop(trial.hash, None)
                if self.storage is not None:
                    self.storage.fetch_records(trial.hash, self.store.path(trial))
                if answer["state"] != "busy":
                    return
                await asyncio.sleep(BUSY_SECONDS)
                if self.store.result(trial) is not None:
                    return

    async def _alone(self, trial: Trial) -> Message:
        """One attempt at a trial of one process."""
        import ray

        needs: dict[str, Any] = {"num_cpus": trial.resources.cpus, "num_gpus": trial.resources.gpus}
        task = ray.remote(**needs, max_retries=0)(supervise).remote(self._order(trial), Launch())
        return await self._follow(trial, task)

    async def _together(self, trial: Trial) -> Message:
        """One attempt at a trial of several processes: all of them get their place, or none."""
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        needs = trial.resources
        strategy = "STRICT_PACK" if self._needs_one_machine(trial) else "PACK"
        bundles = [{"CPU": needs.cpus, **({"GPU": needs.gpus} if needs.gpus else {})}] * needs.processes
        group = placement_group(bundles, strategy=strategy)
        resources: dict[str, Any] = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": 0}

        def inside(function: Any, bundle: int) -> Any:
            where: Any = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            return ray.remote(**resources, scheduling_strategy=where)(function)

        try:
            try:
                await group.ready()
                slots = await asyncio.gather(*[inside(place, index).remote() for index in range(needs.processes)])
            except ray.exceptions.RayError as error:
                raise _Lost(f"Its machine was lost: {_line(error)}") from None
            tasks = [
                inside(supervise, bundle).remote(self._order(trial), launch) for bundle, launch in _launches(slots)
            ]
            return await self._follow_all(trial, tasks)
        finally:
            remove_placement_group(group)

    def _needs_one_machine(self, trial: Trial) -> bool:
        return self.storage is not None or fits_one_machine(trial.resources, _machines())

    async def _follow_all(self, trial: Trial, tasks: Sequence[Any]) -> Message:
        """The answer of the first machine, once all have ended; where one is lost, the others are stopped."""
        import ray

        followers = [asyncio.create_task(self._follow(trial, task)) for task in tasks]
        first, ahead = await asyncio.wait(followers, return_when=asyncio.FIRST_EXCEPTION)
        for follower, task in zip(followers, tasks, strict=True):
            if follower in ahead:
                ray.cancel(task)
        await asyncio.wait(followers)
        failed = [error for follower in [*first, *ahead] if (error := follower.exception()) is not None]
        if failed:
            raise failed[0]
        return followers[0].result()

    async def _follow(self, trial: Trial, task: Any) -> Message:
        """Read a supervisor's messages to the last one.

        Raises:
            _Lost: a process of the trial or its machine is gone.
            StudyError: the machine cannot work for the study.
        """
        import ray

        self.messages[task] = trial
        message: Message = {"state": "killed", "error": "Its supervisor ended without an answer."}
        try:
            async for reference in _each(task):
                message = await reference
                self.running[trial.hash] = trial
                if "metrics" in message:
                    write_text(self.store.path(trial) / metrics.FILE, message["metrics"])
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            raise _Lost(f"Its machine or its supervisor was lost: {_line(error)}") from None
        finally:
            del self.messages[task]
        if message["state"] == "killed":
            raise _Lost(message["error"])
        return message

    async def _stop(self, waiting: Sequence[asyncio.Task]) -> None:
        """End what runs and wait until it has saved a checkpoint; nothing to do after a run to the end."""
        import ray

        started = list(self.running.values())
        for task in list(self.messages):
            ray.cancel(task)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        deadline = time.monotonic() + GRACE
        while any(self._is_held(trial) for trial in started) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)

    def _is_held(self, trial: Trial) -> bool:
        return self.store.running(trial) if self.storage is None else self.storage.leased(trial.hash)

    def _order(self, trial: Trial) -> Order:
        return Order(
            trial=trial.hash,
            run=self.name,
            study=self.study,
            folder=str(self.store.folder.resolve()),
            storage=self.storage.url if self.storage is not None else None,
            cwd=str(Path.cwd()),
            threads=trial.resources.cpus,
            version=versions()["plait"],
        )


def _launches(slots: Sequence[Message]) -> list[tuple[int, Launch]]:
    """One launch for each machine, with a bundle of the group that lies there.

    Args:
        slots: of every bundle: node, address, port, GPUs.
    """
    by_node: dict[str, list[int]] = {}
    for bundle, where in enumerate(slots):
        by_node.setdefault(where["node"], []).append(bundle)
    meeting = slots[0]
    return [
        (
            bundles[0],
            Launch(
                processes=len(bundles),
                gpus=tuple(gpu for bundle in bundles for gpu in slots[bundle]["gpus"]),
                machines=len(by_node),
                rank=rank,
                address=meeting["address"],
                port=meeting["port"],
            ),
        )
        for rank, bundles in enumerate(by_node.values())
    ]


def _machines() -> list[Machine]:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]


async def _each(task: Any) -> AsyncIterator[Any]:
    async for reference in task:
        yield reference


def _cause(error: Any) -> Exception:
    """What a task raised: plait's own errors as they are, all others as a lost trial."""
    cause = error.cause
    if isinstance(cause, StudyError | OptionError):
        return cause
    return _Lost(f"Its supervisor failed: {type(cause).__name__}: {_line(cause)}")


def _line(error: BaseException) -> str:
    """The first sentence of an error; Ray goes on with pages of advice."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return line.split(". ")[0].removesuffix(".") + "."
