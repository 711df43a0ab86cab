"""How scores are printed: one table for all kinds of measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.cli.output import interval_notes, print_table, say, size


def print_evaluation(evaluation: Mapping[str, Any]) -> None:
    """Print what :func:`plait.evaluation.run.evaluate` returns: the size of the model, and its scores."""
    say(f"{evaluation['parameters']:,} parameters")
    if evaluation["results"]:
        say()
        print_results(evaluation["results"])
    print_unavailable(evaluation["unavailable"])


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """One line for each score: its interval and how that was found, what a guess scores, how many samples."""
    rows = []
    for result in results:
        for index, score in enumerate(result["scores"]):
            method, chance, unit = score["interval"], score["chance"], score["unit"]
            rows.append(
                [
                    "" if index else result["name"],
                    score["metric"],
                    number(score["score"], unit),
                    "-" if method == "none" else f"{number(score['low'], unit)} to {number(score['high'], unit)}",
                    "" if unit in ("bytes", score["metric"]) else unit,
                    "-" if method == "none" else method,
                    "-" if chance is None else number(chance, unit),
                    f"{score['n']:,}",
                ]
            )
    header = ["measured", "metric", "score", "95 % interval", "unit", "method", "chance", "samples"]
    if not any(row[4] for row in rows):
        header, rows = header[:4] + header[5:], [row[:4] + row[5:] for row in rows]
    print_table(header, rows, right=(2, len(header) - 2, len(header) - 1))
    if notes := interval_notes(score["interval"] for result in results for score in result["scores"]):
        say(f"\n{notes}")
    for result in results:
        for score in result["scores"]:
            if "baselines" in score["more"]:
                said = beside(score["score"], score["more"]["baselines"])
                say(f"\n{result['name']}: {score['score']:.4f} bits per byte; {said}")


def number(value: float, unit: str) -> str:
    """A value with the digits that its unit deserves."""
    if unit == "bytes":
        return size(round(value))
    return f"{value:,.0f}" if unit == "tokens/s" else f"{value:.3f}"


def print_unavailable(unavailable: Sequence[Mapping[str, Any]]) -> None:
    """What this model cannot be measured on, and why."""
    if unavailable:
        say("\nNot measured")
    for part in unavailable:
        say(f"  {part['name']}: {part['reason']}")


def beside(bits: float, others: Mapping[str, Any]) -> str:
    """What compressors and counts of bytes make of the same text."""
    figures = {"gzip": others["gzip"], "xz": others["xz"]}
    if others.get("ngram") is not None:
        figures[f"byte {others['ngram']['length']}-gram of the training text"] = others["ngram"]["bits_per_byte"]
    said = f"of the same {others['bytes']:,} bytes: " + ", ".join(f"{name} {v:.4f}" for name, v in figures.items())
    best = min(figures, key=lambda name: figures[name])
    if bits >= figures[best]:
        return f"{said}.\nThe model is not better than {best}."
    return f"{said}."


def draw_grids(results: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """A heat map of each result whose samples differ in length and depth, beside the results."""
    from plait.benchmarks.needle import draw_grid, grid
    from plait.evaluation.session import file_name

    drawn = []
    for result in results:
        groups = result["scores"][0]["groups"]
        if groups and {"length", "depth"} <= groups[0].keys():
            path = folder / f"{file_name(result['name'])}.html"
            drawn.append(draw_grid(grid(groups), path, f"{result['name']}: {result['model']}"))
    return drawn
