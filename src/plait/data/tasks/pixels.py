"""Pixel sequences: an image, one pixel after the other; at the end, what does it show?

Le, Jaitly and Hinton (1504.00941) classify MNIST digits from their 784 pixels; the Image task of the Long Range Arena
(2011.04006) is of the same kind. The id of a pixel is its grey level, the target on the last position the number of the
class, and rows are filled in front with 0, which is the background. Images come from scikit-learn (1,797 handwritten
digits, 8 x 8 pixels, 17 levels, 10 classes) or from files in the format of MNIST.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plait.data.corpus import SPLITS, checked_split
from plait.data.order import Permutation, stable_hash
from plait.data.tasks.base import IGNORED, Ids, Task
from plait.errors import DataError
from plait.extras import install_command
from plait.files import regular_file

_UNSIGNED_BYTES = 8  # the type code of an idx file
_GZIP = b"\x1f\x8b"


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        pixels: ``(N, P)``, row by row.
        classes: ``(N,)``, from 0.
    """

    pixels: npt.NDArray[np.integer[Any]]
    classes: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Pixels(Task):
    """Options of pixel sequences.

    Of ten images eight are for training, one for validation and one for testing, always the same. A call takes images
    of its split in a random order, none again before all of them came.

    Args:
        vocab_size: 0 for as many ids as there are grey levels, or classes if those are more.
        length: tokens per row T; 0 for as many as there are pixels.
        path: idx file of images, gzip or plain, such as ``train-images-idx3-ubyte.gz``, beside that of the labels,
            which is named ``labels`` and ``idx1`` instead; None for the digits of scikit-learn.

    Raises:
        DataError: scikit-learn or a file is missing or broken; sizes that do not fit.
    """

    vocab_size: int = 0
    length: int = 0
    path: str | None = None

    def __post_init__(self) -> None:
        pixels, classes = self.images
        if len(pixels) < 10:
            raise DataError(f"Pixels: {self.path} has {len(pixels)} images; three splits need at least 10.")
        if self.length == 0:
            object.__setattr__(self, "length", pixels.shape[1])
        if self.length < pixels.shape[1]:
            raise DataError(
                f"Pixels: length={self.length} is too short for images of {pixels.shape[1]} pixels; "
                f"use 0 or length >= {pixels.shape[1]}."
            )
        self._take_vocabulary(1 + int(max(pixels.max(), classes.max())))

    @property
    def images(self) -> Images:
        """All images, of the three splits together."""
        return _digits() if self.path is None else _read_images(Path(self.path))

    @property
    def chance(self) -> float:
        """One of the classes."""
        return 1 / len(np.unique(self.images.classes))

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """The images of a split."""
        return _split_indices(len(self.images.pixels))[SPLITS.index(checked_split(split))]

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """Rows of the training split; see :meth:`generate_split`."""
        return self.generate_split(rng, rows, "train")

    def generate_split(self, rng: np.random.Generator, rows: int, split: str) -> tuple[Ids, Ids]:
        mine = self.indices(split)
        chosen = np.concatenate([rng.permutation(mine) for _ in range(math.ceil(rows / len(mine)))])[:rows]
        pixels, classes = self.images
        inputs = np.zeros((rows, self.length), np.int32)
        inputs[:, self.length - pixels.shape[1] :] = pixels[chosen]
        targets = np.full((rows, self.length), IGNORED, np.int32)
        targets[:, -1] = classes[chosen]
        return inputs, targets


@cache
def _split_indices(count: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Train, validation, test. Shuffled, since files are sorted by writer or by class."""
    shuffle = Permutation(count, stable_hash("pixels"))
    order = np.array([shuffle(i) for i in range(count)])
    held_out = count // 10
    return order[2 * held_out :], order[held_out : 2 * held_out], order[:held_out]


@cache
def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            f"Pixels: the digits need the package scikit-learn: {install_command('eval')}; or give path=, the images "
            "of MNIST or of a set in its format."
        ) from None
    digits = load_digits()
    return Images(digits.data.astype(np.uint8), digits.target)


@cache
def _read_images(path: Path) -> Images:
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        raise DataError(f"Pixels: path={path} must be a file of images, such as train-images-idx3-ubyte.gz.")
    pixels, classes = _read_idx(path, 3), _read_idx(path.with_name(name), 1)
    if len(pixels) != len(classes):
        raise DataError(f"Pixels: {path} has {len(pixels)} images, but {name} beside it has {len(classes)} labels.")
    return Images(pixels.reshape(len(pixels), -1), classes)


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An idx file of unsigned bytes: two zeros, the type, the number of dimensions, their sizes, the data.

    Raises:
        DataError: the file is missing, cut short or of another format.
    """
    try:
        content = regular_file(path).read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Pixels: {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]) or len(content) < header:
        raise DataError(f"Pixels: {path} is not an idx file of bytes in {dimensions} dimensions, as MNIST has them.")
    shape = [int(size) for size in np.frombuffer(content[4:header], ">u4")]
    if len(content) - header != math.prod(shape):
        raise DataError(f"Pixels: {path} has {len(content) - header} bytes of data; {shape} needs {math.prod(shape)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
