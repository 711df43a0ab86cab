"""The study file: a grid of configurations, the tracks that measure them, the seeds, the rule's thresholds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from plait.catalog import names
from plait.errors import OptionError, nearest
from plait.names import Name
from plait.sections import Positive, Strict, read_yaml, validated
from plait.study.resources import Resources

#: Short names of grid axes.
SHORT_AXES = {"mixers": "model.mixer", "ratios": "model.ratio"}

#: Axes that say which layers a model has; the transformer is one point of them, whatever else the grid holds.
ARCHITECTURE_AXES = ("model.mixer", "model.ratio", "model.placement", "model.layer_types")

_RATIO = re.compile(r"pure|full|[1-9][0-9]*:1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Fraction = Annotated[float, Field(ge=0, le=1)]


class Sections(Strict):
    """Partial sections of a run file (``plait.runs.config.RunConfig``); checked when trials are resolved."""

    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)


class Track(Sections):
    """One thing that every configuration is trained on and measured by; its sections override ``base``.

    Args:
        kind: ``lm`` (loss on held-out text), ``recall`` (accuracy of associative recall) or ``task`` (accuracy of
            whatever tasks it is trained on).
        seeds: seeds of this track, instead of the study's.
        learnt: accuracy that the transformer must reach for the track to prove anything, instead of the study's
            threshold; for a task, None asks for nothing.
    """

    kind: Literal["lm", "recall", "task"]
    seeds: list[int] | None = None
    learnt: Fraction | None = None


class Override(Strict):
    """Values for some points of the grid.

    Args:
        when: dotted keys and the value (or list of values) that they must have; ``track`` names a track.
        set: dotted keys and the values that they get.
    """

    when: dict[str, Any]
    set: dict[str, Any]


class Thresholds(Strict):
    """What guards, comparisons and the recommendation compare with; all are fixed before the study runs.

    Args:
        learnt: accuracy that the transformer must reach for a track of recall or of a task to prove anything.
        off_plateau: share of the way from guessing to 1 that a configuration must have come at the smallest load;
            one that has not is marked as not learnt and used by no conclusion.
        loss_tolerance: losses that differ by less than this fraction of the transformer's are equivalent, and a
            recommended configuration's loss is not higher by more.
        recall_tolerance: the same for accuracies, as a difference.
    """

    learnt: Fraction = 0.9
    off_plateau: Fraction = 0.5
    loss_tolerance: Annotated[float, Field(ge=0)] = 0.02
    recall_tolerance: Fraction = 0.05


class StudyFile(Strict):
    """A study as its file says it.

    Args:
        name: name of the study and of its folder under ``runs/``.
        description: a sentence for the report.
        base: sections that all trials share.
        tracks: what is learnt and measured, by name; at most one of ``lm`` and ``recall`` each.
        grid: dotted key -> values; ``mixers`` and ``ratios`` are short for ``model.mixer`` and ``model.ratio``.
        transformer: add a transformer of the same sizes once, as the baseline.
        match_parameters: choose each model's feed-forward width so that it has as many parameters as the transformer of
            the same sizes, within 1 %.
        seeds: every configuration is trained once per seed.
        exclude: points to leave out, each a mapping of dotted keys to values.
        overrides: values for some points only.
        thresholds: of the guard and the recommendation.
        claims: names of published claims that the report decides on this study's results.
        contexts: context lengths at which tables show cache bytes; the answer quotes none above four times the longest
            row that was measured.
        resources: what each trial asks of a cluster; ``overrides`` may set ``resources.KEY`` for some points.
        workers: processes at a time; None takes one per GPU, or one per core up to 8.
        vocab_size: what ``plait study plan`` assumes for a tokenizer that has to be downloaded.
    """

    name: Name
    description: str = ""
    base: Sections = Sections()
    tracks: dict[str, Track]
    grid: dict[str, list[Any]]
    transformer: bool = True
    match_parameters: bool = False
    seeds: list[int] = Field(default_factory=lambda: [0])
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    overrides: list[Override] = Field(default_factory=list)
    thresholds: Thresholds = Thresholds()
    claims: list[str] = Field(default_factory=list)
    contexts: list[Positive] = Field(default_factory=lambda: [1024, 4096, 16384], min_length=1)
    resources: Resources = Resources()
    workers: Positive | None = None
    vocab_size: Positive | None = None

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The grid with full dotted keys."""
        return {SHORT_AXES.get(key, key): values for key, values in self.grid.items()}

    def track_of(self, kind: str) -> str | None:
        """Name of the track of this kind, or None."""
        return next((name for name, track in self.tracks.items() if track.kind == kind), None)


def parse_study(values: Any, source: str) -> StudyFile:
    """A validated study.

    Args:
        values: content of the file.
        source: the file's name, for messages.

    Raises:
        OptionError: naming the key, the value and the nearest valid key.
    """
    if not isinstance(values, dict):
        raise OptionError(f"{source}: a study file is a mapping with 'name', 'tracks' and 'grid'.")
    study = _with_thresholds(validated(StudyFile, values, source))
    _check_tracks(study, source)
    _check_grid(study, source)
    for claim in study.claims:
        if claim not in names("claim"):
            raise OptionError(f"{source}: claims: there is no claim {claim!r}.{nearest(claim, names('claim'))}")
    if study.match_parameters:
        set_there = [key for override in study.overrides for key in override.set]
        widths = [key for key in [*study.axes, *set_there] if key in ("model.intermediate_size", "model.hidden_ratio")]
        if widths:
            raise OptionError(
                f"{source}: match_parameters chooses the feed-forward width of every model, so the grid and the "
                f"overrides cannot set {widths[0]!r} as well; drop one of the two."
            )
    for override in study.overrides:
        clash = set(override.set) & set(study.axes)
        if clash:
            raise OptionError(
                f"{source}: overrides set {sorted(clash)[0]!r}, which is an axis of the grid; drop one of the two."
            )
    return study


def load_study(path: Path) -> StudyFile:
    """Read and check a study file."""
    return parse_study(read_yaml(path), str(path))


def shipped_study(name: str) -> Path:
    """The file of a study that comes with plait.

    Args:
        name: such as ``hybrid-linear-mini``.

    Raises:
        OptionError: there is no such study.
    """
    package = Path(__file__).parent.parent
    installed, source = package / "studies", package.parent.parent / "studies"  # the second in a source tree
    folder = installed if installed.is_dir() else source
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise OptionError(
            f"No study {name!r} comes with plait.{nearest(name, (path.stem for path in folder.glob('*.yaml')))}"
        )
    return path


def _with_thresholds(study: StudyFile) -> StudyFile:
    """Each track with its own ``learnt``, so that a stored study tells None, which asks for nothing, from absent."""
    tracks = {
        name: track
        if track.kind == "lm" or "learnt" in track.model_fields_set
        else track.model_copy(update={"learnt": study.thresholds.learnt})
        for name, track in study.tracks.items()
    }
    return study.model_copy(update={"tracks": tracks})


def _check_tracks(study: StudyFile, source: str) -> None:
    if not study.tracks:
        raise OptionError(f"{source}: tracks is empty; name at least one, such as 'lm: {{kind: lm, data: ...}}'.")
    kinds = [track.kind for track in study.tracks.values()]
    for kind in ("lm", "recall"):
        if kinds.count(kind) > 1:
            raise OptionError(
                f"{source}: tracks holds {kinds.count(kind)} tracks of kind {kind!r}; "
                "a study has at most one of them, and any number of kind 'task'."
            )
    for name, track in study.tracks.items():
        if track.kind == "task" and not _NAME.fullmatch(name):
            raise OptionError(
                f"{source}: tracks.{name}: the name of a track of kind 'task' becomes a column; use letters, digits, "
                "'.', '_' and '-' only."
            )
        if track.kind == "lm" and track.learnt is not None:
            raise OptionError(
                f"{source}: tracks.{name}.learnt = {track.learnt:g}: a track of kind 'lm' has no accuracy; drop it."
            )
        if track.kind == "recall" and track.learnt is None:
            raise OptionError(
                f"{source}: tracks.{name}.learnt = None: the recommendation rests on recall, so it needs a threshold; "
                "only a track of kind 'task' may go without."
            )
    for where, seeds in [("seeds", study.seeds)] + [(f"tracks.{n}.seeds", t.seeds) for n, t in study.tracks.items()]:
        if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
            raise OptionError(f"{source}: {where} = {seeds}: give at least one seed, and no seed twice.")


def _check_grid(study: StudyFile, source: str) -> None:
    doubled = [short for short, full in SHORT_AXES.items() if short in study.grid and full in study.grid]
    if doubled:
        raise OptionError(
            f"{source}: grid holds both {doubled[0]!r} and {SHORT_AXES[doubled[0]]!r}, which are the same axis."
        )
    sections = list(Sections.model_fields)
    for key, values in study.axes.items():
        section, _, field = key.partition(".")
        if section not in sections or not field:
            known = [*SHORT_AXES, *(f"{name}.KEY" for name in sections)]
            raise OptionError(
                f"{source}: grid.{key} = {values}: an axis is a dotted key of a section.{nearest(key, known)}"
            )
        if not values:
            raise OptionError(f"{source}: grid.{key} is empty; give at least one value.")
    for ratio in study.axes.get("model.ratio", []):
        if not isinstance(ratio, str) or not _RATIO.fullmatch(ratio):
            raise OptionError(f'{source}: grid ratio {ratio!r}: write "pure", "full" or "R:1", such as "3:1".')
    own = {key for part in [study.base, *study.tracks.values()] for key in part.model.get("mixers", {})}
    for mixer in study.axes.get("model.mixer", []):
        known = [*names("mixer"), *own]
        if mixer not in known:
            raise OptionError(f"{source}: grid mixer {mixer!r} does not exist.{nearest(str(mixer), known)}")
