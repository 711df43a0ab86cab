"""``plait frontier``: quality against budget for several policies."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.interruption import says_how_to_go_on
from plait.cli.options import integers
from plait.cli.output import interval_notes, print_json, print_table, say
from plait.errors import OptionError


def command(
    model: Annotated[str, typer.Argument(help="Folder of a saved model, fixture:NAME, or a name on the hub.")],
    policies: Annotated[str, typer.Option(help="Policies, separated by commas.")] = "streaming,snapkv,h2o,quest",
    budgets: Annotated[
        str, typer.Option(help="Shares of the keys that a query may be scored with.")
    ] = "0.1,0.25,0.5,1",
    tasks: Annotated[str, typer.Option(help="Tasks or benchmarks, separated by commas.")] = "niah,key_value",
    lengths: Annotated[str, typer.Option(help="Tokens of a row or prompt.")] = "128,256",
    limit: Annotated[int, typer.Option(min=1, help="Samples of each.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/frontier by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure tasks under policies at several budgets and draw the frontier; a second call goes on."""
    from plait.drawing.panels import panels_svg
    from plait.evaluation.batching import Batches
    from plait.evaluation.frontier import Grid, frontier, records
    from plait.evaluation.subject import open_subject
    from plait.files.writing import write_json
    from plait.provenance import provenance
    from plait.report.figures_page import write_figures_page
    from plait.report.frontier import figures

    grid = Grid(_names(policies), _shares(budgets), _names(tasks), integers(lengths, "lengths"), limit)
    folder = out or Path("runs") / "frontier"
    subject = open_subject(model)
    with says_how_to_go_on(f"Stopped. Run the same command to continue; finished measurements are kept in {folder}."):
        points = frontier(subject, grid, folder, Batches("auto", subject.device))
    folder.mkdir(parents=True, exist_ok=True)
    header = ["task", "policy", "budget", "score", "95 % interval", "method", "prefill", "decode", "cache"]
    rows = [
        [p.task, p.policy, f"{p.budget:g}", f"{p.score:.3f}", f"{p.low:.3f} to {p.high:.3f}", p.interval]
        + [_share(value) for value in (p.prefill, p.decode, p.held)]
        for p in points
    ]
    result = {"model": subject.name, "points": records(points), **provenance()}
    write_json(folder / "frontier.json", result)
    page = write_figures_page(
        folder / "frontier.html",
        f"Policies on {subject.name}",
        "Score of each task against what each policy really cost: query-key pairs scored in the prefill, pairs scored "
        "in decoding, and bytes of the cache, each as a share of dense attention's. The points of a policy are its "
        f"budgets; the budget is what it was told, and only names them. {interval_notes(p.interval for p in points)}",
        [panels_svg(figure) for figure in figures(points)],
        (header, rows),
        shlex.join(["plait", *sys.argv[1:]]),
        right=(2, 3, 6, 7, 8),
    )
    if as_json:
        print_json({**result, "page": str(page)})
        return
    for task in dict.fromkeys(point.task for point in points):
        say(task)
        print_table(header[1:], [row[1:] for row in rows if row[0] == task], right=(1, 2, 5, 6, 7))
        say()
    say("prefill, decode: query-key pairs scored; cache: bytes held; all as shares of dense attention's.")
    say(f"{interval_notes(p.interval for p in points)}\n\nPage: {page}")


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _shares(text: str) -> list[float]:
    try:
        return sorted(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--budgets {text!r}: write numbers separated by commas, such as 0.1,0.5,1.") from None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
