"""Exit 0 if this interpreter already has a torch that plait can use, so that no other build replaces it."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    installed = version("torch")
except PackageNotFoundError:
    sys.exit(1)
major, minor = (int(part) for part in re.findall(r"\d+", installed)[:2])
sys.exit((major, minor) < (2, 11))
