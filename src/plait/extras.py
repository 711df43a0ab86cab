"""Optional packages: which extra brings what, and the command that installs it here."""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from urllib.parse import urlparse
from urllib.request import url2pathname

#: Extra -> the distribution that it is asked for.
EXTRAS = {
    "gpu": "flash-linear-attention",
    "cluster": "ray",
    "harness": "lm-eval",
    "finetune": "peft",
    "hub": "datasets",
    "eval": "wonderwords",
    "chinese": "jieba",
    "gguf": "gguf",
}


def installed(package: str) -> str | None:
    """Version of a distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation of plait.

    A clone that is installed with ``pip install -e`` is named by its folder; every other installation gets the
    packages themselves, so that the command works wherever plait came from.
    """
    ours = distribution("plait")
    folder = _clone(ours)
    if folder is not None:
        return f'pip install -e "{folder}[{extra}]"'
    return "pip install " + " ".join(f'"{package}"' for package in _packages(ours, extra))


def _clone(ours: Distribution) -> str | None:
    """The folder that an editable installation runs from."""
    text = ours.read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return url2pathname(urlparse(origin["url"]).path)


def _packages(ours: Distribution, extra: str) -> list[str]:
    """Requirements of an extra as pip takes them."""
    marked = re.compile(rf"""\s*;.*extra\s*==\s*['"]{re.escape(extra)}['"]""")
    return [marked.sub("", line) for line in ours.requires or [] if marked.search(line)]
