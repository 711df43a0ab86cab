"""Colours and symbols: one of each per mixer, the same in every chart of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plait.catalog import methods

#: Colour roles by theme. ``mixer-N`` are told apart under normal vision, protanopia, deuteranopia and tritanopia
#: (at least 0.1 apart in Oklab under the simulation of Machado et al., 2009), and have a contrast of 3:1 or more.
PALETTE: dict[str, dict[str, str]] = {
    "light": {
        "paper": "#ffffff",
        "raised": "#f6f7f9",
        "ink": "#30343b",
        "ink-band": "rgba(48, 52, 59, 0.12)",
        "muted": "#5b626d",
        "line": "#c9ced6",
        "grid": "#e7e9ed",
        "link": "#1f5fa8",
        "good": "#1d6b45",
        "good-band": "#e3f3ea",
        "bad": "#a32b2b",
        "bad-band": "#fbe9e7",
        "unsure": "#7a5300",
        "unsure-band": "#fbf1d9",
        "mixer-0": "#2b6eb4",
        "mixer-1": "#c28500",
        "mixer-2": "#40a281",
        "mixer-3": "#b8236d",
        "mixer-4": "#853b0f",
        "mixer-5": "#682097",
    },
    "dark": {
        "paper": "#14171c",
        "raised": "#1d2128",
        "ink": "#e3e6ea",
        "ink-band": "rgba(227, 230, 234, 0.14)",
        "muted": "#a3abb7",
        "line": "#444b56",
        "grid": "#2b3038",
        "link": "#8ab8f0",
        "good": "#8fd9b0",
        "good-band": "#1b3327",
        "bad": "#f5a9a1",
        "bad-band": "#3d2222",
        "unsure": "#f0cd84",
        "unsure-band": "#38301c",
        "mixer-0": "#6782e3",
        "mixer-1": "#f9c058",
        "mixer-2": "#58caa7",
        "mixer-3": "#ba5c9f",
        "mixer-4": "#e77953",
        "mixer-5": "#cdabf8",
    },
}

#: plotly's symbol name -> the same shape as an SVG path in a box of 12 x 12, for legends and hand-made figures.
SYMBOLS: dict[str, str] = {
    "circle": "M6 1a5 5 0 1 1 0 10a5 5 0 0 1 0-10z",
    "square": "M1.6 1.6h8.8v8.8h-8.8z",
    "diamond": "M6 .2L11.8 6L6 11.8L.2 6z",
    "triangle-up": "M6 .8L11.4 10.4H.6z",
    "triangle-down": "M6 11.2L.6 1.6h10.8z",
    "pentagon": "M6 .6L11.4 4.6L9.3 11H2.7L.6 4.6z",
    "star": "M6 0l1.5 4.1 4.4.2-3.5 2.7 1.2 4.2L6 8.8l-3.6 2.4 1.2-4.2L.1 4.3l4.4-.2z",
    "x": "M2.2 .6L6 4.4L9.8 .6L11.4 2.2L7.6 6L11.4 9.8L9.8 11.4L6 7.6L2.2 11.4L.6 9.8L4.4 6L.6 2.2z",
}
DASHES: dict[str, str] = {
    "solid": "",
    "dash": "6 4",
    "dot": "2 3",
    "dashdot": "6 3 2 3",
    "longdash": "10 4",
    "longdashdot": "10 3 2 3",
}
TRANSFORMER = "attention"


@dataclass(frozen=True)
class Style:
    """How one mixer is drawn.

    Args:
        colour: a role of :data:`PALETTE`.
        symbol: a key of :data:`SYMBOLS`.
        label: the mixer's name for readers.
    """

    colour: str
    symbol: str
    label: str


def mixer_styles(mixers: Iterable[str]) -> dict[str, Style]:
    """A style for each mixer; the transformer is drawn in ink, the others in catalogue order.

    With more mixers than colours, colours come again with another symbol.

    Args:
        mixers: mixer names of a study, in any order; duplicates do no harm.

    Returns:
        Mixer name -> style, in the order of legends.
    """
    present = set(mixers)
    titles = {method.name: method.title for method in methods("mixer")}
    ordered = [name for name in titles if name in present] + sorted(present - set(titles))
    symbols = [symbol for symbol in SYMBOLS if symbol != "x"]
    colours = [role for role in PALETTE["light"] if role.startswith("mixer-")]
    styles: dict[str, Style] = {}
    for name in ordered:
        if name != TRANSFORMER:
            index = len(styles)
            styles[name] = Style(colours[index % len(colours)], symbols[index % len(symbols)], titles.get(name, name))
    if TRANSFORMER in present:
        styles[TRANSFORMER] = Style("ink", "x", "Transformer")
    return styles


def ratio_dashes(ratios: Iterable[str]) -> dict[str, str]:
    """A dash for each ratio, for charts where a line is one configuration; ``full`` is solid."""
    names = list(DASHES)
    others = [ratio for ratio in ratios if ratio != "full"]
    return {"full": "solid", **{ratio: names[index % len(names)] for index, ratio in enumerate(others)}}
