"""The page of a claim and the table of all, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from plait import catalog
from plait.catalog import Method
from plait.claims.contract import Claim, Evidence


def page(claim: Claim, evidence: Evidence, figure: str) -> str:
    """The sentence, the published figures, the experiment, the figure, the verdict, what would change it.

    Args:
        claim: the claim.
        evidence: of the claim.
        figure: path of the figure from the page.
    """
    method = catalog.get(evidence.claim, "claim")
    versions = _plain(", ".join(f"{name} {version}" for name, version in evidence.versions.items()))
    seeds = ", ".join(map(str, evidence.seeds))
    lines = [
        f"# {method.title}",
        f"**{claim.sentence}** ({paper_link(method.paper)})",
        f"Published: {claim.published}",
        "## The experiment",
        "\n".join(f"{number}. {line}" for number, line in enumerate(claim.experiment, start=1)),
        f"Rule, fixed beforehand: {claim.rule}",
        f"## Verdict: {evidence.verdict}",
        _plain(evidence.seen),
        f"![{claim.figure(evidence.data).label}]({figure})",
        f"## What would change it\n\n{claim.change}",
        "## How it was run",
        "```text\n" + evidence.command.replace("`", "'") + "\n```",
        f"{_minutes(evidence.minutes)}; seeds {seeds}; decided {_plain(evidence.created)}. {_plain(evidence.machine)}; "
        f"{versions}.",
    ]
    return "\n\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text of an evidence file, whose tags a page shows and a browser does not follow."""
    return escape(text, quote=False)


def claims_table(evidence: Mapping[str, Evidence | None], link: str = "") -> str:
    """A row for each claim: verdict, sentence, paper, seeds, minutes, command.

    Args:
        evidence: by claim; None where there is none.
        link: of a claim's page, with ``{}`` for its name; empty for none.
    """
    rows = ["| claim | verdict | sentence | paper | seeds | minutes | command |", "| --- " * 7 + "|"]
    for name, one in evidence.items():
        method = catalog.get(name, "claim")
        title = f"[{name}]({link.format(name)})" if link and one is not None else f"`{name}`"
        rows.append("| " + " | ".join([title, *_cells(method, one)]) + " |")
    return "\n".join(rows)


def paper_link(paper: str) -> str:
    """A link to arXiv; of a claim without a paper, whose it is."""
    return f"[{paper}](https://arxiv.org/abs/{paper})" if paper else "plait's own"


def _cells(method: Method, evidence: Evidence | None) -> list[str]:
    sentence: str = method.load().sentence
    paper = paper_link(method.paper)
    command = f"`plait claim run {method.name}`"
    if evidence is None:
        return ["not run", sentence, paper, "", "", command]
    return [evidence.verdict, sentence, paper, str(len(evidence.seeds)), f"{evidence.minutes:g}", command]


def _minutes(minutes: float) -> str:
    return "1 minute of computing" if minutes == 1 else f"{minutes:g} minutes of computing"
