"""From a study file to its trials: one resolved configuration per track, grid point and seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from plait.errors import OptionError
from plait.evaluation.harness.names import check_section
from plait.runs.config import DataSection, RunConfig, SourceSection
from plait.sections import validated
from plait.study.file import ARCHITECTURE_AXES, StudyFile, Track
from plait.study.resources import Resources

#: Lists that run files have had since trials were first named; where they are empty they are not part of the name.
LATER_LISTS = (("data", "mixture"), ("evaluate", "measure"))


@dataclass(frozen=True)
class Trial:
    """One model to train and measure.

    Args:
        track: name of the track.
        kind: ``lm``, ``recall`` or ``task``.
        key: label of the configuration, the same for all its tracks and seeds.
        seed: of the weights and of the data's order.
        config: the whole resolved run.
        fields: grid values beyond mixer and ratio, by dotted key.
        resources: what it asks of a machine.
    """

    track: str
    kind: str
    key: str
    seed: int
    config: RunConfig
    fields: dict[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    @cached_property
    def hash(self) -> str:
        """Names the trial's folder: 16 hex digits of the SHA-256 of track and resolved configuration.

        The run's name is left out, so renaming a study trains nothing again; so is what is None and an empty list that
        was not always there, so an option that a later version adds does not either.
        """
        resolved = self.config.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        for section, option in LATER_LISTS:
            if not resolved[section][option]:
                del resolved[section][option]
        content = {"track": self.track, **resolved}
        if self.resources.processes > 1:
            content["processes"] = self.resources.processes
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people: track, key and seed."""
        return f"{self.track} | {self.key} | seed {self.seed}"

    def record(self) -> dict[str, Any]:
        """What is stored beside the results."""
        config = self.config.model_dump(mode="json")
        about = {"track": self.track, "kind": self.kind, "key": self.key, "fields": self.fields}
        return {**config, **about, "resources": self.resources.model_dump(mode="json")}


def trials(study: StudyFile, source: str | None = None) -> list[Trial]:
    """All trials of a study: by seed, the transformer first, then in the order of the grid.

    Args:
        study: the checked file.
        source: the file's name, for messages.

    Raises:
        OptionError: a grid point that is not a valid run; the message names key and value.
    """
    source = source or f"study {study.name!r}"
    by_hash: dict[str, Trial] = {}
    labels: dict[tuple[str, str, int], str] = {}
    for position in range(max(len(_seeds(study, track)) for track in study.tracks.values())):
        for point in _points(study):
            for name, track in study.tracks.items():
                seeds = _seeds(study, track)
                if position >= len(seeds):
                    continue
                trial = _resolve(study, name, point, seeds[position], source)
                if trial is None or trial.hash in by_hash:
                    continue
                label = (trial.track, trial.key, trial.seed)
                if label in labels:
                    raise OptionError(
                        f"{source}: two grid points are both called {trial.label!r}; "
                        "their axes must differ in name or value."
                    )
                labels[label] = trial.hash
                by_hash[trial.hash] = trial
    if not by_hash:
        raise OptionError(f"{source}: no trial is left; 'exclude' drops every point of the grid.")
    return list(by_hash.values())


def _seeds(study: StudyFile, track: Track) -> list[int]:
    return study.seeds if track.seeds is None else track.seeds


def _points(study: StudyFile) -> Iterator[dict[str, Any]]:
    """Grid points as dotted key -> value, the transformer's first."""
    axes = study.axes
    others = {key: values for key, values in axes.items() if key not in ARCHITECTURE_AXES}
    if study.transformer:
        baseline = {"model.mixer": "attention", "model.ratio": "full"}
        for values in itertools.product(*others.values()):
            yield {**baseline, **dict(zip(others, values, strict=True))}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _resolve(study: StudyFile, track_name: str, point: Mapping[str, Any], seed: int, source: str) -> Trial | None:
    """The trial of one point, or None where ``exclude`` drops it."""
    values = _values(study, track_name, point, seed, study.exclude)
    if values is None:
        return None
    track, where = study.tracks[track_name], f"{source}, track {track_name!r}"
    resources = validated(Resources, values.pop("resources"), f"{where}, resources")
    config = validated(RunConfig, {"name": study.name, "seed": seed, **values}, where)
    _check_data(track.kind, config.data, where)
    check_section(config.evaluate)
    key, fields = _label(config, [axis for axis in study.axes if axis not in ("model.mixer", "model.ratio")])
    if study.match_parameters and (config.model.layer_types is not None or config.model.ratio != "full"):
        from plait.study.matching import matched  # counts parameters, which takes torch

        config = matched(config, _full_attention(study, track_name, point, seed, where), f"{where}, {key}")
    name = re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{study.name} {track_name} {key} seed {seed}")  # it may name a file
    config = config.model_copy(update={"name": name})
    return Trial(track_name, track.kind, key, seed, config, fields, resources)


def _values(
    study: StudyFile, track_name: str, point: Mapping[str, Any], seed: int, exclude: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The sections of one point, or None where it is excluded."""
    values = {**_merge(_sections(study.base), _sections(study.tracks[track_name])), "resources": {}}
    values["resources"] = study.resources.model_dump()
    _assign_all(values, point)
    matching = {**values, "track": track_name, "seed": seed}
    if any(_matches(matching, pattern) for pattern in exclude):
        return None
    for override in study.overrides:
        if _matches(matching, override.when):
            _assign_all(values, override.set)
    _normalise(values["model"])
    return values


def _full_attention(study: StudyFile, track_name: str, point: Mapping[str, Any], seed: int, where: str) -> RunConfig:
    """The run with full attention at the same point, whether the study trains it or not."""
    others = {key: value for key, value in point.items() if key not in ARCHITECTURE_AXES}
    baseline = {"model.mixer": "attention", "model.ratio": "full", **others}
    values = _values(study, track_name, baseline, seed, [])
    assert values is not None
    values.pop("resources")
    own = values["model"].pop("layer_types", None)
    if (plan := point.get("model.layer_types", own)) is not None:
        values["model"].update(num_hidden_layers=len(plan), mixer="attention", ratio="full")
    return validated(RunConfig, {"name": study.name, "seed": seed, **values}, where)


def _check_data(kind: str, data: DataSection, where: str) -> None:
    """Raise :class:`OptionError` where what is learnt to the end holds nothing that the track measures."""
    last: list[SourceSection] = [part for part in data.mixture if part.end == 1]
    sources = last or [data]
    fits, wanted = {
        "lm": (any(source.corpus is not None for source in sources), "a corpus"),
        "recall": (any(source.task == "mqar" for source in sources), "the task mqar"),
        "task": (any(source.task is not None for source in sources), "a task"),
    }[kind]
    if not fits:
        raise OptionError(f"{where}: a track of kind {kind!r} needs {wanted} in its data, to the end of the training.")


def _normalise(model: dict[str, Any]) -> None:
    """Write equal architectures equally, so that they are one trial.

    Options of mixers that the plan does not use are dropped: tuning one mixer trains no other one again.
    """
    if model.get("layer_types") is not None:
        used = set(model["layer_types"])
        for unread in ("mixer", "ratio", "placement"):
            model.pop(unread, None)
    else:
        if model.get("mixer") == "attention" or model.get("ratio") == "full":
            model.update(mixer="attention", ratio="full")
        if model.get("ratio") in ("pure", "full"):
            model.pop("placement", None)
        used = {model.get("mixer", "gated_deltanet"), "attention"}
    if "mixers" in model:
        model["mixers"] = {name: options for name, options in model["mixers"].items() if name in used}


def _label(config: RunConfig, axes: list[str]) -> tuple[str, dict[str, Any]]:
    """The configuration's key and its further grid fields."""
    model = config.model
    if model.layer_types is not None:
        key = "+".join(model.layer_types)
    else:
        key = "transformer" if model.ratio == "full" else f"{model.mixer} {model.ratio}"
    fields: dict[str, Any] = {}
    content = config.model_dump(mode="json")
    short = [axis.rsplit(".", 1)[-1] for axis in axes]
    for axis, name in zip(axes, short, strict=True):
        if axis == "model.layer_types" or (axis == "model.placement" and model.ratio in ("pure", "full")):
            continue
        value = _lookup(content, axis)
        if value is _ABSENT:
            continue
        fields[axis] = value
        key += f" {name if short.count(name) == 1 else axis}={value}"
    return key, fields


_ABSENT = object()


def _lookup(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return _ABSENT
        values = values[part]
    return values


def _matches(values: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    """Whether every dotted key has the wanted value, or one of a list of them."""
    for dotted, wanted in pattern.items():
        value = _lookup(values, dotted)
        if value != wanted and not (isinstance(wanted, list) and value in wanted):
            return False
    return True


def _sections(part: Any) -> dict[str, Any]:
    return {name: _copied(getattr(part, name)) for name in ("model", "data", "training", "evaluate")}


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``; nested mappings are merged, everything else is replaced."""
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(below.get(key), dict)
        below[key] = _merge(below[key], value) if nested else _copied(value)
    return below


def _assign_all(values: dict[str, Any], dotted: Mapping[str, Any]) -> None:
    for key, value in dotted.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise OptionError(f"{key!r} cannot be set: {part!r} holds a value, not a section.")
        place[last] = _copied(value)
