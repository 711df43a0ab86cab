"""The page in headless Chromium."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plait.drawing.style import PALETTE
from plait.report import write_report
from plait.study.summary import Curve, StudySummary

LOADS = [f"load-{mixer}" for mixer in range(6)]
CHARTS = ["loss", "recall", *LOADS, "pareto", "curves-0", "curves-1", "ar_loss", "other_loss", "decode"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(browser: Any, full_summary: StudySummary, folder: Path) -> Any:
    """The full report at 1280 pixels in light colours."""
    browser.scheme("light")
    browser.width(1280)
    browser.open(write_report(full_summary, folder / "full"))
    return browser


def _errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.log() if entry["level"] in ("SEVERE", "WARNING")]


def _colour(value: str) -> str:
    return "rgb({}, {}, {})".format(*(int(value[start : start + 2], 16) for start in (1, 3, 5)))


def test_no_console_error_and_charts_drawn(page: Any) -> None:
    assert _errors(page) == []
    drawn = page.run(
        """return Object.fromEntries([...document.querySelectorAll("figure")].map((figure) => {
          const place = figure.querySelector(".chart");
          return [figure.dataset.chart, {
            wanted: place.data.length,
            traces: place.querySelectorAll(".main-svg .scatterlayer .trace").length,
            marks: place.querySelectorAll(".trace path").length,
            invalid: Plotly.validate(place.data, place.layout) || [],
          }];
        }))"""
    )
    assert sorted(drawn) == sorted(CHARTS)
    for name, chart in drawn.items():
        assert chart["traces"] == chart["wanted"] > 0, name
        assert chart["marks"] >= chart["traces"], name
        assert chart["invalid"] == [], name


def test_page_has_language_title_and_named_parts(page: Any) -> None:
    assert page.run("return document.documentElement.lang") == "en"
    assert page.run("return document.title") == "hybrid-linear-mini – plait study"
    unnamed = page.run(
        """const parts = [...document.querySelectorAll("section, [role=region], [role=img], button, summary")];
        return parts.filter((part) => {
          const by = part.getAttribute("aria-labelledby");
          const name = part.getAttribute("aria-label") || (by ? document.getElementById(by) : part).innerText;
          return !name.trim();
        }).length"""
    )
    assert unnamed == 0
    levels = page.run("return [...document.querySelectorAll('h1, h2, h3')].map((heading) => +heading.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def _column(page: Any, name: str, unit: str = "") -> int:
    headings = page.run("return [...document.querySelectorAll('.sortable thead th')].map((th) => th.innerText)")
    return next(index for index, text in enumerate(headings) if text.startswith(name) and unit in text)


def _values(page: Any, column: int) -> list[str]:
    return page.run(
        """return [...document.querySelectorAll('.sortable tbody tr')].map(
          (row) => row.cells[arguments[0]].dataset.value)""",
        column,
    )


def _heading(page: Any, column: int, action: str) -> str | None:
    return page.run(
        f"""const th = document.querySelectorAll(".sortable thead th")[arguments[0]];
        {action}; return th.getAttribute("aria-sort")""",
        column,
    )


def test_table_sorts_by_click(page: Any) -> None:
    column = _column(page, "Recall")
    before = _values(page, column)
    assert _heading(page, column, "th.querySelector('button').click()") == "ascending"
    assert _values(page, column) == sorted(before, key=float) != before
    assert _heading(page, column, "th.querySelector('button').click()") == "descending"
    assert _values(page, column) == sorted(before, key=float, reverse=True)
    names = _column(page, "Configuration")
    assert _heading(page, names, "th.querySelector('button').click()") == "ascending"
    assert _heading(page, column, "") is None
    keys = _values(page, names)
    assert keys.index("gla 1:1") < keys.index("gla 3:1") < keys.index("gla 7:1") < keys.index("gla pure")
    assert "Configuration" in page.run("return document.getElementById('sorted').textContent")


def test_table_sorts_by_keyboard(page: Any) -> None:
    column = _column(page, "Cache")
    _heading(page, column, "th.removeAttribute('aria-sort'); th.querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        page.devtools(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert _heading(page, column, "") == "ascending"
    values = [int(value) for value in _values(page, column)]
    assert values == sorted(values)


def _visible(page: Any, chart: str) -> list[str]:
    return page.run(
        """const place = document.querySelector(`figure[data-chart="${arguments[0]}"] .chart`);
        return place.data.filter((trace) => trace.visible !== false).map((trace) => trace.meta.mixer)""",
        chart,
    )


def test_legend_hides_a_mixer_and_shows_it_again(page: Any) -> None:
    click = """const button = document.querySelector('figure[data-chart="loss"] button[data-value="attention"]');
        button.click(); return button.getAttribute("aria-pressed")"""
    everything = _visible(page, "loss")
    assert everything.count("attention") == 3  # band, mean, point
    assert page.run(click) == "false"
    assert _visible(page, "loss") == [mixer for mixer in everything if mixer != "attention"]
    assert page.run(click) == "true"
    assert _visible(page, "loss") == everything


def test_point_says_its_configuration_when_touched(page: Any) -> None:
    place = page.run(
        """const chart = document.querySelector('figure[data-chart="pareto"] .chart');
        chart.scrollIntoView({ block: "center" });
        const index = chart.data.findIndex((trace) => trace.meta.mixer === "hgrn");
        const trace = chart.querySelectorAll(".scatterlayer .trace")[index];
        const box = trace.querySelector(".point").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]"""
    )
    page.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    page.settle()
    text = page.run("return document.querySelector('figure[data-chart=\"pareto\"] .hoverlayer').textContent")
    assert text.startswith("hgrn pure8 linear")
    assert "Cache at 4,096 tokens: 4 KiB" in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_theme_of_page_and_charts(page: Any, theme: str) -> None:
    page.scheme(theme)
    colours = PALETTE[theme]
    assert page.run("return getComputedStyle(document.body).backgroundColor") == _colour(colours["paper"])
    assert page.run("return getComputedStyle(document.body).color") == _colour(colours["ink"])
    strokes = page.run(
        """return [...document.querySelectorAll('figure[data-chart="recall"] .trace .js-line')].map(
          (line) => getComputedStyle(line).stroke)"""
    )
    mixers = [_colour(colours[f"mixer-{index}"]) for index in range(6)]
    assert [stroke for stroke in strokes if stroke in mixers] == mixers
    text = page.run("return getComputedStyle(document.querySelector('.chart .xtick text')).fill")
    assert text == _colour(colours["muted"])
    page.scheme("light")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_overflows(page: Any, width: int) -> None:
    page.width(width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    wide = page.run(
        """return [...document.querySelectorAll("main *")].filter((element) =>
          !element.closest(".scroll, pre, .visually-hidden") && element.getBoundingClientRect().right > innerWidth + 1
        ).map((element) => element.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    charts = page.run("return [...document.querySelectorAll('.chart')].map((chart) => chart.offsetHeight)")
    assert max(charts) <= 400
    page.width(1280)


def test_print_is_light_and_fits_the_sheet(page: Any) -> None:
    page.scheme("dark")
    page.run(
        """window.printed = null;
        addEventListener("beforeprint", () => {
          window.printed = {
            widths: [...document.querySelectorAll(".chart .main-svg")].map((svg) => +svg.getAttribute("width")),
            stroke: getComputedStyle(document.querySelector('figure[data-chart="recall"] .xtick text')).fill,
            open: document.querySelector("details").open,
          };
        })"""
    )
    sheet = page.devtools("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)
    assert len(sheet["data"]) > 100_000
    printed = page.run("return window.printed")
    assert printed["widths"]
    assert max(printed["widths"]) <= 688  # A4 less two margins of 14 mm, in CSS pixels
    assert printed["stroke"] == _colour(PALETTE["light"]["muted"])
    assert printed["open"] is True
    page.scheme("dark", "print")
    assert page.run("return getComputedStyle(document.body).backgroundColor") == _colour(PALETTE["light"]["paper"])
    page.scheme("dark")
    after = page.run(
        "return getComputedStyle(document.querySelector('figure[data-chart=\"recall\"] .xtick text')).fill"
    )
    assert after == _colour(PALETTE["dark"]["muted"])
    assert page.run("return document.querySelector('details').open") is False
    page.scheme("light")


def test_hostile_names_are_shown_as_they_are(browser: Any, full_summary: StudySummary, folder: Path) -> None:
    name = "</script><b>bold</b>%{x}"
    last = full_summary.configurations[-1].model_copy(update={"key": name, "mixer": name, "ratio": name})
    curve = Curve(key=name, track="lm", seed=0, points=[(1, 2.0), (2, 1.0)])
    summary = full_summary.model_copy(
        update={
            "name": name,
            "configurations": [*full_summary.configurations[:3], last],
            "curves": [curve],
            "study": {name: name},
        }
    )
    browser.open(write_report(summary, folder / "hostile"))
    assert _errors(browser) == []
    assert browser.run("return document.querySelector('h1').textContent") == name
    assert browser.run("return document.querySelectorAll('b').length") == 0
    ticks = browser.run(
        "return [...document.querySelectorAll('figure[data-chart=\"loss\"] .xtick text')].map((t) => t.textContent)"
    )
    assert any(name in tick for tick in ticks)
    legend = browser.run("return [...document.querySelectorAll('.legend button')].map((button) => button.innerText)")
    assert name in legend


def test_minimal_page(browser: Any, minimal_summary: StudySummary, folder: Path) -> None:
    browser.width(390)
    browser.open(write_report(minimal_summary, folder / "minimal"))
    assert _errors(browser) == []
    assert browser.run("return [...document.querySelectorAll('figure')].map((figure) => figure.dataset.chart)") == [
        "loss"
    ]
    assert browser.run("return document.querySelectorAll('.trace .point').length") == 1
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    browser.width(1280)
