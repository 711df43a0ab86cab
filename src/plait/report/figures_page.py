"""A page of figures with a table below, in one file that opens offline."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from plait.drawing.style import PALETTE
from plait.files.writing import write_text

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def write_figures_page(
    path: Path, title: str, lead: str, svgs: Sequence[str], table: Table, command: str, right: Collection[int] = ()
) -> Path:
    """Write the page.

    Args:
        path: the file; its folder is made if absent.
        title: heading.
        lead: a sentence below it.
        svgs: SVG documents.
        table: header and rows.
        command: that made it.
        right: indices of columns aligned to the right, for numbers.

    Returns:
        The path.
    """
    colours = "".join(
        f"{where}{{{''.join(f'--{role}:{colour};' for role, colour in PALETTE[theme].items())}}}{end}"
        for theme, where, end in (
            ("light", ":root", ""),
            ("dark", "@media screen and (prefers-color-scheme: dark){:root", "}"),
        )
    )
    style = (files("plait.report") / "style.css").read_text(encoding="utf-8")
    header, rows = table
    body = "".join(f"<tr>{_cells('td', row, right)}</tr>" for row in rows)
    figures = "".join(f"<figure>{_alone(svg, index)}</figure>" for index, svg in enumerate(svgs))
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="generator" content="plait">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{colours}{style}figure{{margin:1.5rem 0;overflow-x:auto}}"
        "figure svg{max-width:100%;height:auto;min-width:46rem}td+td,th+th{white-space:nowrap}</style></head>"
        f'<body><main><header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        f'<p class="meta"><code>{escape(command)}</code></p></header><section>{figures}</section>'
        f'<section><div class="scroll bordered"><table><thead><tr>'
        f"{_cells('th', header, right)}</tr></thead><tbody>{body}</tbody></table></div>"
        "</section></main></body></html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _cells(tag: str, texts: Sequence[str], right: Collection[int]) -> str:
    styles = [' style="text-align:right"' if index in right else "" for index in range(len(texts))]
    return "".join(f"<{tag}{style}>{escape(text)}</{tag}>" for style, text in zip(styles, texts, strict=True))


def _alone(svg: str, index: int) -> str:
    """The figure with its style kept to itself: several on one page must not colour each other."""
    name = f"figure-{index}"
    start, end = svg.index("<style>") + len("<style>"), svg.index("</style>")
    rules = svg[start:end]
    rules = rules[rules.index("}}") + 2 :] if "@media" in rules else rules  # colours come from the page
    scoped = "".join(f"#{name} {rule}}}" for rule in rules.split("}") if rule.strip())
    return f"{svg[: start - len('<style>')]}<style>{scoped}{svg[end:]}".replace("<svg ", f'<svg id="{name}" ', 1)
