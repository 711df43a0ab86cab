"""Runs a claim and keeps its evidence: a JSON file, a figure and a page."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from plait import catalog
from plait.claims.contract import Announce, Claim, Evidence
from plait.claims.page import page
from plait.drawing.lines import lines_svg
from plait.errors import StudyError
from plait.files import read_text
from plait.files.locks import sole_writer
from plait.files.writing import write_json, write_text

EVIDENCE_FILE = "evidence.json"
#: Evidence that is kept with the package: NAME.json.
KEPT = Path(__file__).parent / "evidence"


def load_claim(name: str) -> Claim:
    """The claim of this name.

    Raises:
        CatalogError: there is none.
    """
    return catalog.get(name, "claim").load()()


def run_claim(name: str, folder: Path, announce: Announce = lambda line: None) -> Evidence:
    """Run a claim's experiment, decide, and write ``evidence.json``, ``figure.svg`` and ``page.md``.

    Args:
        name: in the catalogue.
        folder: of the experiment; an interrupted one goes on.
        announce: told of progress.

    Raises:
        CatalogError: there is no such claim.
        FolderInUse: another process writes in ``folder``.
    """
    claim = load_claim(name)
    with sole_writer(Path(folder), "plait claim run"):
        return _run(name, claim, Path(folder), announce)


def _run(name: str, claim: Claim, folder: Path, announce: Announce) -> Evidence:
    measured = claim.measure(folder, announce)
    verdict, seen = claim.decide(measured.data)
    evidence = Evidence(
        claim=name,
        verdict=verdict,
        seen=seen,
        rule=claim.rule,
        data=measured.data,
        seeds=measured.seeds,
        minutes=round(measured.seconds / 60, 1),
        created=datetime.now(UTC).date().isoformat(),
        command=f"plait claim run {name}",
        **measured.provenance,
    )
    write_json(folder / EVIDENCE_FILE, evidence.model_dump(mode="json"))
    write_page(claim, evidence, folder / "page.md", folder / "figure.svg")
    return evidence


def write_page(claim: Claim, evidence: Evidence, path: Path, figure: Path) -> None:
    """Write a claim's page and, beside it or below, its figure.

    Args:
        claim: the claim.
        evidence: its evidence.
        path: of the page.
        figure: of the SVG file.
    """
    figure.parent.mkdir(parents=True, exist_ok=True)
    write_text(figure, lines_svg(claim.figure(evidence.data)))
    write_text(path, page(claim, evidence, figure.relative_to(path.parent).as_posix()))


def read_evidence(path: Path) -> Evidence:
    """Read an evidence file.

    Raises:
        StudyError: it is absent or damaged.
    """
    if not os.path.lexists(path):
        raise StudyError(f"There is no evidence at {path}; plait claim run NAME makes it.")
    text = read_text(Path(path), StudyError)
    try:
        return Evidence.model_validate_json(text)
    except ValidationError as error:
        raise StudyError(
            f"{path} is not evidence of a claim: {error.errors()[0]['msg']}. Run the claim again."
        ) from None


def kept_evidence(name: str) -> Evidence | None:
    """The evidence that comes with the package; None where the claim has not been run for it."""
    path = KEPT / f"{name}.json"
    return read_evidence(path) if path.exists() else None
