"""``plait eval``: measure a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plait.cli.interruption import says_how_to_go_on
from plait.cli.options import integers, key_values
from plait.cli.output import print_json, say
from plait.cli.scores import draw_grids, print_evaluation
from plait.errors import OptionError

if TYPE_CHECKING:
    from plait.data import DataBundle
    from plait.evaluation.subject import Subject
    from plait.runs.config import DataSection, RunConfig


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, or a name on the hub.")],
    suite: Annotated[
        str | None, typer.Option(help="Suites: recall, ruler, state, mad, longbench, lm, harness; or all.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks or benchmarks by name: niah,passkey.")] = None,
    harness: Annotated[str | None, typer.Option(help="Task sets of lm-eval: lambada_openai,piqa.")] = None,
    corpus: Annotated[
        str | None, typer.Option(help="The held-out text of a corpus: python-stdlib, text:PATH or hf:NAME.")
    ] = None,
    contexts: Annotated[
        str | None, typer.Option(help="Decoding speed and cache after contexts of these lengths: 512,2048.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of rows, prompts or windows: 256,1024. Each is measured by itself.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Samples of each: rows, prompts, windows of text. 500 by default.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the tasks and benchmarks that know it; repeat it for more.")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="Field of the corpus's rows that holds the text; text by default.")
    ] = None,
    rare_below: Annotated[
        int | None, typer.Option(min=1, help="AR hits: only bigrams rarer than this in the corpus's training split.")
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with files of benchmarks and of the harness.")] = None,
    policy: Annotated[str | None, typer.Option(help="Measure under this policy.")] = None,
    policy_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the policy; repeat for more.")] = None,
    batch_size: Annotated[str, typer.Option(help="Rows at a time, or auto.")] = "auto",
    out: Annotated[str | None, typer.Option(help="Folder of the results; else MODEL/evaluation.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: what --suite, --tasks, --harness, --corpus and --contexts name.

    Without any of them: what it was trained on, and what its run file asks for.
    """
    wanted_lengths = [] if lengths is None else integers(lengths, "lengths")
    options = key_values(option or [])
    policy_options = key_values(policy_option or [], "policy-option")
    if policy_options and policy is None:
        raise OptionError("--policy-option goes with --policy.")
    if field is not None and corpus is None:
        raise OptionError("--field goes with --corpus.")
    rows = _rows(batch_size)
    parts: list[dict[str, Any]] = [{"suite": name} for name in _names(suite)]
    parts += [{kind: _names(text)} for kind, text in (("tasks", tasks), ("harness", harness)) if text]
    shared = {"lengths": wanted_lengths, "limit": limit, "data_dir": data_dir, "options": options}
    values: dict[str, Any] = {
        "measure": [{**part, **shared} for part in parts],
        "decode_contexts": [] if contexts is None else integers(contexts, "contexts"),
    }
    named = bool(parts or corpus or contexts)

    from plait.evaluation.harness.names import check_section
    from plait.runs.config import DataSection, EvaluateSection
    from plait.runs.folder import model_folder, read_run_file
    from plait.sections import validated

    place = model_folder(model)
    run = read_run_file(Path(place))
    data = None if corpus is None else DataSection(corpus=corpus, field=field or "text")
    if not named:
        if run is None:
            raise OptionError(
                f"{model} does not say what it was trained on: name what to measure with --suite, --tasks, --harness, "
                "--corpus or --contexts."
            )
        data, values = run.data, run.evaluate.model_dump()
        if wanted_lengths or options:
            values["settings"] = [{"length": n, **options} for n in wanted_lengths] or [options]
    values |= {"limit": limit} if limit is not None else {}
    values |= {"ar_hits_rare_below": rare_below} if rare_below is not None else {}
    section = validated(EvaluateSection, values, "plait eval")
    check_section(section)

    from plait.evaluation.batching import Batches
    from plait.evaluation.run import Agenda, agenda_of
    from plait.evaluation.session import measure, results_folder
    from plait.evaluation.subject import open_subject

    folder = results_folder(model) if out is None else Path(out)
    again = f"Stopped; the same command goes on: what is measured is kept in {folder}."
    with says_how_to_go_on(again), _under(open_subject(model), policy, policy_options) as subject:
        agenda = agenda_of(subject, _bundles(data, wanted_lengths, place, run, subject), section)
        if named:  # a corpus that is named need not be what the model was trained on
            agenda = Agenda(further=agenda.measurements, unavailable=agenda.unavailable)
        results = list(measure(subject, agenda.measurements, folder, Batches(rows, subject.device)))
        evaluation = agenda.record(subject, results)
    pictures = draw_grids(evaluation["results"], folder)
    if as_json:
        print_json({**evaluation, "folder": str(folder), "pictures": [str(path) for path in pictures]})
        return
    print_evaluation(evaluation)
    for path in pictures:
        say(f"\nLength by depth: {path}")
    say(f"\nResults are in {folder}")


@contextmanager
def _under(subject: Subject, policy: str | None, options: Mapping[str, Any]) -> Iterator[Subject]:
    """The subject, under the policy where there is one."""
    if policy is None:
        yield subject
        return
    from plait.evaluation.under_policy import under_policy

    with under_policy(subject, policy, options) as (changed, _):
        yield changed


def _bundles(
    data: DataSection | None, lengths: list[int], place: str, run: RunConfig | None, subject: Subject
) -> list[DataBundle]:
    """The data at each of these lengths, or at its own."""
    from plait.data import build
    from plait.runs.folder import DATA_FOLDER, RUN_FILE

    if data is None:
        return []
    if data.corpus is not None and subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on text.")
    parents = [folder for folder in (Path(place), Path(place).parent) if (folder / RUN_FILE).exists()]
    shared = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plait"
    folder = parents[-1] / DATA_FOLDER if parents and parents[-1] != Path(place) else shared
    at_lengths = [data.model_copy(update={"length": length}) for length in lengths] or [data]
    return [build(section, folder, run.seed if run else 0, subject.tokenizer) for section in at_lengths]  # type: ignore[arg-type]


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _rows(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--batch-size {text!r} must be a whole number of at least 1, or auto.")
    return int(text)
