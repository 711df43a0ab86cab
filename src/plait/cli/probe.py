"""``plait probe``: measure inside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import integers, key_values
from plait.cli.output import print_json, print_table, say
from plait.errors import DataError, OptionError

if TYPE_CHECKING:
    from plait.evaluation.subject import Subject
    from plait.probes import NeedleRun, Probe
    from plait.probes.retrieval_heads import RetrievalHeads


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, fixture:NAME, or a hub name.")],
    name: Annotated[str, typer.Argument(help="Name of a probe; see plait list --kind probe.")],
    text: Annotated[Path | None, typer.Option(help="Text file that the model reads, or the haystack.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text or of a question's haystack.")] = 128,
    samples: Annotated[int, typer.Option(min=1, help="Texts, or questions.")] = 8,
    option: Annotated[list[str] | None, typer.Option(help="Option of the probe, KEY=VALUE; repeatable.")] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="retrieval_heads: also measure recall with this many heads masked, such as 1,2,4."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions and of the random heads.")] = 0,
    rows: Annotated[str, typer.Option(help="Rows to print, highest first; or all.")] = "10",
    out: Annotated[
        Path | None, typer.Option(help="Folder, or a file NAME.csv or NAME.json; runs/probe/NAME by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure inside a model: one sentence, the highest rows, and a file with all of them beside a figure.

    retrieval_heads asks about needles: in --text for a model that knows English, else in rows of the task niah.
    The other probes read --text.
    """
    if rows != "all" and not (rows.isdecimal() and int(rows) > 0):
        raise OptionError(f"--rows {rows!r}: write a whole number of at least 1, or all.")

    from plait.evaluation.subject import open_subject
    from plait.probes import probe

    subject = open_subject(model)
    measured = probe(subject.model, name, **key_values(option or []))
    masked: list[dict[str, Any]] = []
    if name == "retrieval_heads":
        masked = _retrieval(subject, measured, text, length, samples, mask, seed)  # type: ignore[arg-type]
    elif mask is not None:
        raise OptionError(f"--mask belongs to retrieval_heads, not to {name}.")
    else:
        measured.run(_ids(subject, text, length, samples))
    shown = None if rows == "all" else int(rows)
    _report(name, measured, masked, out or Path("runs") / "probe" / name, shown, as_json)


def _ids(subject: Subject, text: Path | None, length: int, samples: int) -> Any:
    """``(samples, length)`` ids from the start of a text."""
    import torch

    from plait.files import read_text

    if text is None:
        raise OptionError("This probe reads a text: give --text FILE.")
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer, so it cannot read a text.")
    ids = subject.tokenizer.encode(read_text(text), add_special_tokens=False)
    if len(ids) < samples * length:
        raise DataError(
            f"{text} has {len(ids):,} tokens; {samples} samples of {length} need {samples * length:,}: lower --samples "
            "or --length."
        )
    return torch.tensor(ids[: samples * length], device=subject.device).view(samples, length)


def _retrieval(
    subject: Subject, heads: RetrievalHeads, text: Path | None, length: int, samples: int, mask: str | None, seed: int
) -> list[dict[str, Any]]:
    import dataclasses

    from plait.probes import masking_experiment

    heads.detect(_questions(subject, text, length, samples, seed))
    if mask is None:
        return []
    counts = integers(mask, "mask")
    fresh = _questions(subject, text, length, samples, seed + 1)
    return [
        dataclasses.asdict(row) for row in masking_experiment(subject.model, fresh, heads.ranking(), counts, seed=seed)
    ]


def _questions(subject: Subject, text: Path | None, length: int, samples: int, seed: int) -> list[NeedleRun]:
    from plait.data.tasks.niah import NeedleInHaystack
    from plait.probes import task_runs, text_runs

    if text is None:
        return task_runs(NeedleInHaystack(vocab_size=min(256, subject.vocab_size), length=length), samples, seed)
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer: leave out --text to ask in token ids.")
    return list(text_runs(subject.tokenizer, text, [length], samples, seed))


def _report(
    name: str, measured: Probe, masked: list[dict[str, Any]], out: Path, shown: int | None, as_json: bool
) -> None:
    from plait.files.writing import write_json
    from plait.provenance import provenance

    table, sentence = measured.table(), measured.sentence()
    record = {"probe": name, "sentence": sentence, "table": table.to_dict("records"), "masked": masked, **provenance()}
    file = out if out.suffix in (".csv", ".json") else out / "table.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        write_json(file, record)
    else:
        table.to_csv(file, index=False)
    figure = file.with_suffix(".svg") if file is out else out / "figure.svg"
    figure.write_text(measured.svg(), encoding="utf-8")
    if as_json:
        print_json({**record, "file": str(file), "figure": str(figure)})
        return
    say(f"{sentence}\n")
    top = table if shown is None else measured.top().head(shown)
    cells = [[_cell(value) for value in row] for row in top.itertuples(index=False)]
    print_table(list(table.columns), cells, right=range(len(table.columns)))
    if len(top) < len(table):
        say(f"The {len(top)} highest of {len(table)} rows, by {measured.ranked}; --rows all prints every one.")
    if masked:
        say("\nRecall while heads are masked, mean and 95 % interval:")
        rows = [
            [str(row["heads"]), row["chosen"], f"{row['recall']:.3f} ({row['low']:.3f} to {row['high']:.3f})"]
            for row in masked
        ]
        print_table(["heads", "chosen", "recall"], rows, right=(0,))
    say(f"\nTable: {file}\nFigure: {figure}")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
