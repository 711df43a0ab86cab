"""The stages of a conversion: what each does, what it leaves on disk, how it goes on after it was killed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.conversion import adapters
from plait.conversion.loop import Loss, Spent, fit
from plait.conversion.losses import Alignment, Distillation, NextToken
from plait.conversion.material import measure, recall_and_language, rows
from plait.conversion.recipe import Recipe
from plait.conversion.selection import Selection, importance, most_important
from plait.conversion.student import attention_options, build_student, converted_layers, joined, select_trained
from plait.data import DataBundle
from plait.errors import OptionError, TrainingError
from plait.files.manifest import fault
from plait.files.writing import PARTIAL, publish_folder, read_back, remove_folder, write_json
from plait.models import PlaitForCausalLM
from plait.models.alignment import align_weights
from plait.runs.checkpoint import checkpoints

FINISHED, MODEL = "finished.json", "model"


@dataclass
class Pipeline:
    """Runs the stages in their order; each finished one is a folder with its record and its model.

    Args:
        teacher: the transformer, all layers attention.
        recipe: what is done.
        selection: which layers stay attention.
        bundle: what is learnt from and measured on.
        folder: one folder for each stage.
        skip: stages to leave out.
        samples: held-out rows that measure a stage.
        seed: of new weights.
        announce: told line by line what happens.
    """

    teacher: PlaitForCausalLM
    recipe: Recipe
    selection: Selection
    bundle: DataBundle
    folder: Path
    skip: frozenset[str]
    samples: int
    seed: int
    announce: Callable[[str], None]
    kept: list[int] = field(default_factory=list, init=False)
    importance: list[float] | None = field(default=None, init=False)
    teacher_results: list[dict[str, Any]] = field(default_factory=list, init=False)
    records: list[dict[str, Any]] = field(default_factory=list, init=False)
    last: Path | None = field(default=None, init=False)
    _student: PlaitForCausalLM | None = field(default=None, init=False)

    def order(self) -> list[str]:
        """The stages that this conversion has."""
        first = ["transfer", "align", "select"] if self.selection.measured else ["select", "transfer", "align"]
        names = [name for name in [*first, "distil", "tune", "merge"] if name not in self.skip or name == "transfer"]
        absent = {name for name in ("align", "distil", "tune") if getattr(self.recipe, f"{name}_steps") == 0}
        if not self.recipe.lora_rank or not {"tune"} <= set(names) - absent:
            absent.add("merge")
        return [name for name in names if name not in absent]

    def run(self) -> PlaitForCausalLM:
        """All stages that are not done yet; returns the hybrid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results = self._measure_teacher()
        for name in self.order():
            folder = self.folder / name
            if (folder / FINISHED).exists():
                self.announce(f"{name}: done before")
            else:
                self._begin(name, folder, results)
            record = read_back(folder / FINISHED)
            self.records.append(record)
            self.kept, results = record["kept"], record["after"] or results
            self.importance = record.get("importance", self.importance)
            if (folder / MODEL).exists() and self.last != folder / MODEL:
                self.last, self._student = folder / MODEL, None
        return self.student

    @property
    def student(self) -> PlaitForCausalLM:
        """The model of the last finished stage."""
        if self._student is None:
            assert self.last is not None
            if (wrong := fault(self.last)) is not None:
                raise TrainingError(
                    f"{self.last} is damaged: {wrong}. Delete {self.last.parent} and the folders of the later stages; "
                    "the same command then repeats them."
                )
            model = PlaitForCausalLM.from_pretrained(self.last)
            align_weights(model)
            self._student = model.to(self.teacher.device).eval()  # type: ignore[arg-type]
        return self._student

    def _measure_teacher(self) -> list[dict[str, Any]]:
        path = self.folder / "teacher.json"
        if not path.exists():
            write_json(path, {"results": self._measure(self.teacher)}, sealed=True)
        self.teacher_results = read_back(path)["results"]
        self.announce(f"teacher: {summary(self.teacher_results)}")
        return self.teacher_results

    def _measure(self, model: PlaitForCausalLM) -> list[dict[str, Any]]:
        return measure(model.eval(), self.bundle, samples=self.samples, batch_size=max(32, self.recipe.batch_size))

    def _begin(self, name: str, folder: Path, before: list[dict[str, Any]]) -> None:
        """Run one stage and publish its model and its record."""
        folder.mkdir(exist_ok=True)
        began = time.perf_counter()
        partial = folder / f"{PARTIAL}-{MODEL}"
        shutil.rmtree(partial, ignore_errors=True)
        record: dict[str, Any] = {"name": name, "steps": 0, "tokens": 0, "before": before}
        record |= getattr(self, f"_{name}")(folder, partial)
        record.setdefault("seconds", time.perf_counter() - began)
        record["kept"] = self.kept
        record["after"] = None
        if partial.exists():
            publish_folder(partial, folder / MODEL)
            self.last, self._student = folder / MODEL, None
            record["after"] = self._measure(self._whole(folder / MODEL))
            self.announce(f"{name}: {summary(record['after'])}")
        write_json(folder / FINISHED, record, sealed=True)
        for checkpoint in checkpoints(folder):
            remove_folder(checkpoint)

    def _whole(self, folder: Path) -> PlaitForCausalLM:
        """The student with its adapters, as it is measured."""
        student = adapters.merge(self.student, folder)
        if student is not self.student or (folder / adapters.ADAPTERS).exists():
            self._student = None  # merged in place: what is on disk is not
        return student

    def _select(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Choose the layers that stay attention; a measured choice puts aligned twins into all others."""
        count = len(self.teacher.model.layers)
        if not self.selection.measured:
            heads = attention_options(self.teacher).heads(self.teacher.config.dims)[0]
            self.kept = self.selection.choose(count, heads)
            self.announce(f"select: layers {joined(self.kept)} of {count} stay attention")
            return {}
        sweep = self._sweep(folder)
        scores = importance([row["recall"] for row in sweep], [row["language"] for row in sweep])
        self.kept = most_important(scores, len(self.selection.choose(count, 0)))
        table = ", ".join(f"{score:.3g}" for score in scores)
        self.announce(f"select: layers {joined(self.kept)} of {count} stay attention; importance {table}")
        hybrid = build_student(self.teacher, self.recipe, self.kept, seed=self.seed, twins=self.student)
        hybrid.save_pretrained(partial)
        return {"importance": scores, "sweep": sweep}

    def _sweep(self, folder: Path) -> list[dict[str, float]]:
        """Recall and language of the teacher with one layer replaced, for each layer."""
        path = folder / "sweep.json"
        done: list[dict[str, float]] = read_back(path)["layers"] if path.exists() else []
        layers = range(len(self.teacher.model.layers))
        for index in layers[len(done) :]:
            others = [other for other in layers if other != index]
            model = build_student(self.teacher, self.recipe, others, seed=self.seed, twins=self.student, unchanged=True)
            recall, bits = recall_and_language(self._measure(model))
            if recall is None or bits is None:
                raise OptionError(
                    "A selection by importance weighs recall against language: give data with a task and a text, or "
                    "choose layers otherwise."
                )
            done.append({"recall": recall, "language": 2**-bits})
            write_json(path, {"layers": done}, sealed=True)
        return done

    def _transfer(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Build the student; its new mixers take over what they can."""
        transfer = "transfer" not in self.skip
        student = build_student(self.teacher, self.recipe, self.kept, seed=self.seed, transfer=transfer)
        student.save_pretrained(partial)
        return {"fresh": not transfer}

    def _align(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Teach each new mixer the outputs of the attention that it replaces."""
        loss = Alignment(
            self.teacher,
            self.student,
            converted_layers(self.student),
            after_projection=self.recipe.align_after_projection,
            relative=self.recipe.align_relative,
        )
        return self._train("align", loss, folder, partial)

    def _distil(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Teach the student the teacher's next-token distribution."""
        return self._train("distil", Distillation(self.teacher, self.student), folder, partial)

    def _tune(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Teach the student the next token, by adapters where the recipe says so."""
        if not self.recipe.lora_rank:
            return self._train("tune", NextToken(self.student), folder, partial)
        wrapped = adapters.add(self.student, self.recipe, self.seed)
        record = self._train("tune", NextToken(self.student), folder, None)
        adapters.save(wrapped, partial)
        self._student = None
        return record

    def _merge(self, folder: Path, partial: Path) -> dict[str, Any]:
        """Add the adapters to the weights."""
        assert self.last is not None
        merged = adapters.merge(self.student, self.last)
        merged.save_pretrained(partial)
        return {}

    def _train(self, name: str, loss: Loss, folder: Path, partial: Path | None) -> dict[str, Any]:
        training = self.recipe.training(name)
        trained = select_trained(self.student, self.recipe, name)
        if not trained:
            raise OptionError(
                f"The stage {name!r} would train nothing: no layer is converted. Skip it, or convert some."
            )
        dataset = rows(self.bundle, name, training.steps * training.batch_size)
        self.announce(f"{name}: {training.steps:,} steps of {training.batch_size} rows, {len(trained)} tensors")
        spent: Spent = fit(self.student, loss, dataset, training, folder, announce=self.announce)
        self.student.requires_grad_(False)
        if partial is not None:
            self.student.save_pretrained(partial)
        return vars(spent)


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """The first score of each result, in one line."""
    firsts = [(result["name"], result["scores"][0]) for result in results]
    return ", ".join(f"{name} {score['score']:.3f} {score['unit']}".rstrip() for name, score in firsts)
