"""The heat map: a cell a number, darker with size."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from plait.drawing.heat import heat_svg


def test_cells_stand_in_rows_and_are_as_dark_as_their_numbers() -> None:
    text = heat_svg([[0.0, 1.0], [2.0, 4.0]], "Title", rows="layer", columns="head")
    ET.fromstring(text)
    assert re.findall(r'fill-opacity="([\d.]+)"', text) == ["0.000", "0.250", "0.500", "1.000"]
    assert "layer 1, head 0: 2" in text
    capped = heat_svg([[0.0, 1.0], [2.0, 4.0]], "Title", rows="layer", columns="head", high=2.0)
    assert re.findall(r'fill-opacity="([\d.]+)"', capped) == ["0.000", "0.500", "1.000", "1.000"]


def test_ragged_or_negative_tables_are_refused() -> None:
    for values in ([], [[]], [[1.0], [1.0, 2.0]], [[-1.0]]):
        with pytest.raises(ValueError, match="A heat map"):
            heat_svg(values, "Title", rows="a", columns="b")
