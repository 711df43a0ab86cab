"""``plait probe``: measure inside a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.options import integers, key_values
from plait.cli.output import print_json, print_table
from plait.errors import DataError, OptionError

if TYPE_CHECKING:
    from plait.evaluation.subject import Subject
    from plait.probes import NeedleRun, Probe
    from plait.probes.retrieval_heads import RetrievalHeads

#: Rows of a table that are printed; the file holds all.
SHOWN = 40


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, fixture:NAME, or a hub name.")],
    name: Annotated[str, typer.Argument(help="Probe, as plait list --kind probe prints it.")],
    text: Annotated[Path | None, typer.Option(help="Text file that the model reads, or the haystack.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a text or of a question's haystack.")] = 128,
    rows: Annotated[int, typer.Option(min=1, help="Texts, or questions.")] = 8,
    option: Annotated[list[str] | None, typer.Option(help="Option of the probe, KEY=VALUE; repeatable.")] = None,
    mask: Annotated[
        str | None, typer.Option(help="retrieval_heads: recall with so many heads masked, such as 1,2,4.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the questions and of random heads.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/probe/NAME by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure inside a model; writes table.csv and figure.svg.

    retrieval_heads asks about needles: in --text for a model that knows English, else in rows of the task niah.
    The other probes read --text.
    """
    from plait.evaluation.subject import open_subject
    from plait.probes import probe

    subject = open_subject(model)
    measured = probe(subject.model, name, **key_values(option or []))
    masked: list[dict[str, Any]] = []
    if name == "retrieval_heads":
        masked = _retrieval(subject, measured, text, length, rows, mask, seed)  # type: ignore[arg-type]
    elif mask is not None:
        raise OptionError(f"--mask belongs to retrieval_heads, not to {name}.")
    else:
        measured.run(_ids(subject, text, length, rows))
    _report(name, measured, masked, out or Path("runs") / "probe" / name, as_json)


def _ids(subject: Subject, text: Path | None, length: int, rows: int) -> Any:
    """``(rows, length)`` ids from the start of a text."""
    import torch

    from plait.data.files import read_text

    if text is None:
        raise OptionError("This probe reads a text: give --text FILE.")
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer, so it cannot read a text.")
    ids = subject.tokenizer.encode(read_text(text), add_special_tokens=False)
    if len(ids) < rows * length:
        raise DataError(f"{text} has {len(ids):,} tokens; {rows} rows of {length} need {rows * length:,}.")
    return torch.tensor(ids[: rows * length], device=subject.device).view(rows, length)


def _retrieval(
    subject: Subject, heads: RetrievalHeads, text: Path | None, length: int, rows: int, mask: str | None, seed: int
) -> list[dict[str, Any]]:
    import dataclasses

    from plait.probes import masking_experiment

    heads.detect(_questions(subject, text, length, rows, seed))
    if mask is None:
        return []
    counts = integers(mask, "mask")
    fresh = _questions(subject, text, length, rows, seed + 1)
    return [
        dataclasses.asdict(row) for row in masking_experiment(subject.model, fresh, heads.ranking(), counts, seed=seed)
    ]


def _questions(subject: Subject, text: Path | None, length: int, rows: int, seed: int) -> list[NeedleRun]:
    from plait.data.tasks.niah import NeedleInHaystack
    from plait.probes import task_runs, text_runs

    if text is None:
        return task_runs(NeedleInHaystack(vocab_size=min(256, subject.vocab_size), length=length), rows, seed)
    if subject.tokenizer is None:
        raise OptionError(f"{subject.name} has no tokenizer: leave out --text, and it is asked in token ids.")
    return list(text_runs(subject.tokenizer, text, [length], rows, seed))


def _report(name: str, measured: Probe, masked: list[dict[str, Any]], folder: Path, as_json: bool) -> None:
    table = measured.table()
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)
    (folder / "figure.svg").write_text(measured.svg(), encoding="utf-8")
    if as_json:
        print_json({"probe": name, "table": table.to_dict("records"), "masked": masked, "folder": str(folder)})
        return
    if "score" in table:
        table = table.sort_values("score", ascending=False)
    cells = [[_cell(value) for value in row] for row in table.head(SHOWN).itertuples(index=False)]
    print_table(list(table.columns), cells, right=range(len(table.columns)))
    if len(table) > SHOWN:
        typer.echo(f"... {len(table) - SHOWN} more rows in {folder / 'table.csv'}")
    if masked:
        typer.echo("\nRecall while heads are masked, mean and 95 % interval:")
        rows = [
            [str(row["heads"]), row["chosen"], f"{row['recall']:.3f} ({row['low']:.3f} to {row['high']:.3f})"]
            for row in masked
        ]
        print_table(["heads", "chosen", "recall"], rows, right=(0,))
    typer.echo(f"\nTable and figure: {folder}")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
