"""Ctrl-C and SIGTERM end a command with exit status 130 and one sentence on how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that every command ends by its own words; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def says_how_to_go_on(
    sentence: str = "Stopped. Run the same command to continue from what is finished.",
) -> Iterator[None]:
    """Print the interruption's own words, or ``sentence``, and end with exit status 130.

    Args:
        sentence: for an interruption that brings no message.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(f"\nplait: {str(stop) or sentence}", err=True)
        raise typer.Exit(130) from None
