"""``plait claim``: published statements, each with a small experiment and a verdict by a rule fixed beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plait.cli.interruption import says_how_to_go_on
from plait.cli.output import print_json, print_table, say

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Name of the claim; see plait claim list.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path | None, typer.Option("--out", help="Folder of the claim's work; runs/claims/NAME by default.")]


@app.callback()
def _claim() -> None:
    """Test what papers claim in small experiments."""


@app.command("list")
def list_claims(as_json: Json = False) -> None:
    """List the claims with the verdict of the evidence that comes with plait."""
    from plait import catalog
    from plait.claims import kept_evidence

    rows = []
    for method in catalog.methods("claim"):
        evidence = kept_evidence(method.name)
        verdict = evidence.verdict if evidence else None
        rows.append(
            {"name": method.name, "paper": method.paper, "verdict": verdict, "sentence": method.load().sentence}
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        ["claim", "paper", "verdict", "sentence"],
        [[row["name"], row["paper"] or "plait's own", row["verdict"] or "not run", row["sentence"]] for row in rows],
    )


@app.command("run")
def run(name: Name, out: Folder = None, as_json: Json = False) -> None:
    """Run the experiment, decide, write evidence.json, figure.svg and page.md. Stopped, the same command goes on."""
    from plait.claims import load_claim, run_claim

    load_claim(name)
    folder = out or Path("runs") / "claims" / name
    with says_how_to_go_on():
        evidence = run_claim(name, folder, announce=lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(evidence.model_dump(mode="json"))
        return
    say(f"{evidence.verdict}: {load_claim(name).sentence}")
    say(evidence.seen)
    say(f"Page: {folder / 'page.md'}")


@app.command("show")
def show(
    name: Name,
    out: Annotated[
        Path | None, typer.Option(help="Folder of your own run; by default the evidence that comes with plait.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a claim: sentence, published figures, experiment, rule, verdict, what would change it."""
    from plait import catalog
    from plait.claims import kept_evidence, load_claim, read_evidence
    from plait.claims.run import EVIDENCE_FILE

    claim = load_claim(name)
    evidence = read_evidence(out / EVIDENCE_FILE) if out else kept_evidence(name)
    if as_json:
        texts = {key: getattr(claim, key) for key in ("sentence", "published", "experiment", "rule", "change")}
        print_json({"name": name, **texts, "evidence": evidence.model_dump(mode="json") if evidence else None})
        return
    paper = catalog.get(name, "claim").paper
    source = f"arXiv {paper}" if paper else "plait's own"
    say(f"{claim.sentence} ({source})\n")
    say(f"{claim.published}", label="published   ")
    for number, line in enumerate(claim.experiment, start=1):
        say(line, label="experiment  " if number == 1 else " " * 12)
    say(f"{claim.rule}", label="rule        ")
    if evidence is None:
        say(f"not run; plait claim run {name}", label="verdict     ")
    else:
        say(f"{evidence.verdict} ({evidence.created}, {evidence.minutes:g} minutes of computing)", label="verdict     ")
        say(f"{evidence.seen}", label="seen        ")
        if evidence.rule != claim.rule:
            say("The rule has changed since: run the claim again.", label=" " * 12)
    say(f"{claim.change}", label="to change   ")


@app.command("table")
def table(as_json: Json = False) -> None:
    """Print the table of all claims, in Markdown, from the evidence that comes with plait."""
    from plait import catalog
    from plait.claims import kept_evidence
    from plait.claims.page import claims_table

    evidence = {name: kept_evidence(name) for name in catalog.names("claim")}
    if as_json:
        print_json({name: one.model_dump(mode="json") if one else None for name, one in evidence.items()})
    else:
        typer.echo(claims_table(evidence))
