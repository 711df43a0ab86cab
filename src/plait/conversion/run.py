"""``plait.convert``: a pretrained transformer becomes a hybrid, stage by stage."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait import catalog
from plait.conversion import adapters
from plait.conversion.material import check_vocabulary, read_section, settled
from plait.conversion.recipe import STAGES, Recipe, plain
from plait.conversion.selection import Selection
from plait.conversion.stages import Pipeline
from plait.conversion.student import as_teacher
from plait.data import build
from plait.data.folders import remove_leftovers
from plait.errors import OptionError, TrainingError, nearest
from plait.evaluation.subject import fingerprint, open_model
from plait.files.locks import LOCK, OWNER, sole_writer
from plait.files.manifest import MANIFEST, fault, seal
from plait.files.writing import PARTIAL, clean, read_back, write_json
from plait.models.checkpoints.folders import copy_tokenizer, find_folder
from plait.provenance import provenance
from plait.runs.config import DataSection
from plait.runs.folder import model_folder, read_run_file
from plait.training.runner import quiet

#: File of a converted model's folder that says how it was made.
REPORT = "conversion.json"
_SETTINGS, _STAGES, _DATA = "settings.json", "stages", "data"


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Args:
        folder: holds the hybrid, with its tokenizer; ``plait.load(folder)`` opens it.
        report: what ``conversion.json`` holds: ``settings``, ``kept`` (layers that stay attention), ``teacher`` (its
            results, see :mod:`plait.evaluation.results`), ``stages`` (of each ``name``, ``steps``, ``tokens``,
            ``seconds``, and the results ``before`` and ``after`` it) and ``versions``.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def kept(self) -> list[int]:
        """Layers that stay softmax attention."""
        kept: list[int] = self.report["kept"]
        return kept


def convert(
    model: str | Path | PreTrainedModel,
    recipe: str | Recipe = "halo",
    out: str | Path = "runs/converted",
    *,
    ratio: str | None = None,
    select: str | None = None,
    layers: Sequence[int] | None = None,
    scores: str | Path | Sequence[Sequence[float]] | None = None,
    data: str | Path | DataSection | None = None,
    skip: Collection[str] = (),
    options: Mapping[str, Any] | None = None,
    samples: int = 128,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    announce: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a pretrained transformer into a hybrid.

    The stages are ``select``, ``transfer``, ``align``, ``distil``, ``tune`` and ``merge``; a selection by importance
    comes after ``align``. Each is measured, logged and kept in ``out/stages``. A call that was killed goes on where it
    stopped when it is repeated with the same arguments, and a finished one returns at once.

    Args:
        model: folder or hub name of a Llama or Qwen3 checkpoint or of a transformer that plait trained,
            ``fixture:NAME``, or a model at hand.
        recipe: name of a recipe (``plait list --kind recipe``), or a recipe with its options.
        out: folder of the result, new or of the same conversion.
        ratio: linear layers per full one, ``R:1``, ``pure`` or ``full``; None: the recipe's.
        select: how layers that stay attention are chosen: ``every``, ``importance`` or ``heads``; None: the recipe's.
        layers: the layers that stay attention, instead.
        scores: table of retrieval heads for ``heads``; see :class:`~plait.conversion.selection.Selection`.
        data: what is learnt from; see :func:`~plait.conversion.material.read_section`. None: what the model itself was
            trained on, where its folder says so.
        skip: stages to leave out. Without ``select`` every layer is converted; without ``transfer`` new mixers start
            from random weights; without ``merge`` adapters stay beside the model.
        options: of the recipe, if that is given by name.
        samples: held-out rows of every task and windows of every text that measure each stage.
        seed: of new weights and of the rows.
        tokenizer: of a model at hand.
        announce: told line by line what happens.

    Raises:
        OptionError: a model, option or stage that does not fit.
        TrainingError: ``out`` belongs to another conversion, a loss is not finite, or what an earlier call left is
            damaged.
        FolderInUse: another process writes in ``out``.
        DataError: data that cannot be read.
        BackendUnavailable: the recipe tunes adapters and PEFT is missing.
    """
    chosen = _recipe(recipe, options)
    selection = Selection(select or chosen.default_selection, ratio or chosen.default_ratio, layers, scores)
    for stage in skip:
        if stage not in STAGES:
            raise OptionError(f"There is no stage {stage!r} to skip.{nearest(stage, STAGES)}")
    if chosen.lora_rank and chosen.tune_steps and "tune" not in skip:
        adapters.check_installed()
    place = None if isinstance(model, PreTrainedModel) else find_folder(model_folder(str(model)))
    section = settled(_section(data, place))
    if isinstance(model, PreTrainedModel):
        given, tokens = copy.deepcopy(model), tokenizer  # the caller's stays as it is
    else:
        assert place is not None
        given, tokens = open_model(place)
    precision = given.dtype
    teacher = as_teacher(given).float()
    settings = {
        "model": fingerprint(teacher),
        "recipe": catalog.name_of(type(chosen), "recipe"),
        "options": plain(chosen),
        "selection": selection.described(),
        "data": section.model_dump(mode="json"),
        "skip": sorted(skip),
        "samples": samples,
        "seed": seed,
    }
    folder = Path(out)
    _check_vacant(folder)
    with sole_writer(folder, "conversion"):
        _claim(folder, settings)
        if (folder / REPORT).exists():
            wrong = fault(folder)
            if wrong is not None:
                raise TrainingError(
                    f"The model in {folder} is damaged, or was changed: {wrong}. Delete {folder / REPORT}, and the "
                    "same command writes it again from its last stage."
                )
            return Conversion(folder, read_back(folder / REPORT))
        clean(folder, f"**/{PARTIAL}*")
        remove_leftovers(folder / _DATA)
        bundle = build(section, folder / _DATA, seed, tokens)  # type: ignore[arg-type]
        check_vocabulary(bundle, teacher)
        pipeline = Pipeline(
            teacher=teacher,
            recipe=chosen,
            selection=selection,
            bundle=bundle,
            folder=folder / _STAGES,
            skip=frozenset(skip),
            samples=samples,
            seed=seed,
            announce=announce or (lambda line: None),
        )
        began = time.perf_counter()
        with quiet():
            student = pipeline.run()
            _publish(pipeline, folder, precision)
            if tokens is not None:
                tokens.save_pretrained(folder)
            elif place is not None:
                copy_tokenizer(place, folder)
        _seal(folder)
        report = {
            "settings": settings,
            "kept": pipeline.kept,
            "importance": pipeline.importance,
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
            "teacher": pipeline.teacher_results,
            "stages": pipeline.records,
            "seconds": sum(record["seconds"] for record in pipeline.records),
            "last_call_seconds": time.perf_counter() - began,
            **provenance(),
        }
        write_json(folder / REPORT, report, sealed=True)
        return Conversion(folder, report)


def _recipe(recipe: str | Recipe, options: Mapping[str, Any] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if options:
            raise OptionError("options goes with the name of a recipe; a recipe at hand has its own.")
        return recipe
    made: Recipe = catalog.get(recipe, "recipe").load().parse(recipe, dict(options or {}))
    return made


def _section(data: str | Path | DataSection | None, place: Path | None) -> DataSection:
    if data is not None:
        return read_section(data)
    run = None if place is None else read_run_file(place)
    if run is None:
        raise OptionError("The model does not say what it was trained on: give data, such as --data my-text.txt.")
    return run.data


def _check_vacant(folder: Path) -> None:
    """Raise :class:`OptionError` for a folder with something else in it."""
    held = (LOCK, OWNER)  # of a conversion that was killed, or is beginning
    if not folder.is_dir() or (folder / _SETTINGS).exists():
        return
    if any(path.name not in held and not path.name.startswith(PARTIAL) for path in folder.iterdir()):
        raise OptionError(f"{folder} is not empty and holds no conversion: name a new folder, or empty it first.")


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make ``folder`` this conversion's, or check that it already is."""
    path = folder / _SETTINGS
    if path.exists():
        old = read_back(path)
        differ = sorted(key for key in settings if old.get(key) != settings[key])
        if differ:
            raise TrainingError(
                f"{folder} belongs to another conversion; different: {', '.join(differ)}. Use another folder, or "
                "delete this one."
            )
    write_json(path, settings, sealed=True)


def _publish(pipeline: Pipeline, folder: Path, precision: torch.dtype) -> None:
    """The last stage's model in ``folder``, in the precision of the one that was converted."""
    assert pipeline.last is not None
    pipeline.student.to(precision).save_pretrained(folder)  # type: ignore[arg-type]
    shutil.rmtree(folder / adapters.ADAPTERS, ignore_errors=True)
    adapters.copy(pipeline.last, folder)


def _seal(folder: Path) -> None:
    """Write the hashes of the model's files, which lie beside those of the conversion."""
    own = (MANIFEST, REPORT, _SETTINGS)
    files = [path for path in folder.glob("*") if path.name not in own and not path.name.startswith(".")]
    seal(folder, [*files, *(folder / adapters.ADAPTERS).glob("*")])
