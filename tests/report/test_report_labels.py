import pytest

from plait.drawing.style import PALETTE, SYMBOLS, mixer_styles
from plait.report import labels
from plait.report.series import group
from plait.statistics.interval import Interval
from plait.study.summary import Configuration, StudySummary


def test_ratios_run_from_pure_to_full() -> None:
    wanted = ["pure", "24:1", "12:1", "7:1", "6:1", "3:1", "1:1", "explicit", "full"]
    assert sorted(reversed(wanted), key=labels.ratio_order) == wanted


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (512, "512 B"),
        (1024, "1 KiB"),
        (98_304, "96 KiB"),
        (2**20, "1 MiB"),
        (4_390_912, "4.19 MiB"),
        (3 * 2**30, "3 GiB"),
    ],
)
def test_byte_size(size: int, text: str) -> None:
    assert labels.byte_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(42, "42 s"), (480, "8 min"), (5025, "1 h 24 min")])
def test_duration(seconds: float, text: str) -> None:
    assert labels.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (1_640_960, "1.64 M"), (1_364_297_728, "1.36 B")])
def test_count(number: int, text: str) -> None:
    assert labels.count(number) == text


def test_moment_reads_iso_times_only() -> None:
    assert labels.moment("2026-03-02T14:05:11+00:00") == "2026-03-02 14:05 UTC"
    assert labels.moment("yesterday") == "yesterday"


def _value(n: int, over: str) -> Interval:
    return Interval.model_validate({"mean": 0.5, "low": 0.4, "high": 0.6, "n": n, "over": over})


def test_interval_note_names_what_the_interval_is_over() -> None:
    seeds, windows, one = _value(3, "seeds"), _value(32, "samples"), _value(1, "none")
    assert labels.interval_note([("loss", seeds)] * 2) == "Intervals are 95 %, over 3 seeds."
    assert "2 to 3 seeds" in labels.interval_note([("loss", seeds), ("loss", _value(2, "seeds"))])
    assert "32 held-out windows of one seed" in labels.interval_note([("loss", windows)])
    assert "32 held-out examples of one seed" in labels.interval_note([("recall@64x4", windows)])
    assert "measured once" in labels.interval_note([("loss", seeds), ("loss", one)])
    assert "no difference can be called real" in labels.interval_note([("loss", one)])


def test_layers_counts_and_indices(full_summary: StudySummary) -> None:
    texts = {one.key: labels.layers(one) for one in full_summary.configurations}
    assert texts["gla pure"] == "8 linear"
    assert texts["gla 7:1"] == "7 linear, 1 full (layer 7)"
    assert texts["gla 3:1"] == "6 linear, 2 full (layers 3, 7)"
    assert texts["transformer"] == "8 full"


def test_a_line_per_mixer_over_the_ratios(full_summary: StudySummary) -> None:
    series = {one.mixer: [member.ratio for member in one.members] for one in group(full_summary.configurations)}
    assert series == {
        "attention": ["full"],
        **{mixer: ["pure", "7:1", "3:1", "1:1"] for mixer in series if mixer != "attention"},
    }
    assert len(series) == 7


def test_a_pure_model_begins_the_line_of_each_placement(full_summary: StudySummary) -> None:
    gla = [one for one in full_summary.configurations if one.mixer == "gla"]
    other = [
        one.model_copy(update={"placement": "period_r", "key": f"{one.key} placement=period_r"})
        for one in gla
        if one.ratio != "pure"
    ]
    series = group(gla + other)
    assert [one.variant for one in series] == ["placement=block_r_plus_1", "placement=period_r"]
    assert [[member.ratio for member in one.members] for one in series] == [["pure", "7:1", "3:1", "1:1"]] * 2
    assert {member.placement for member in series[1].members[1:]} == {"period_r"}


def test_grid_fields_part_lines(full_summary: StudySummary) -> None:
    def sized(one: Configuration, size: int) -> Configuration:
        return one.model_copy(update={"fields": {"model.hidden_size": size}})

    gla = [one for one in full_summary.configurations if one.mixer == "gla"]
    series = group([sized(one, size) for size in (64, 128) for one in gla])
    assert [one.variant for one in series] == ["hidden_size=64", "hidden_size=128"]


def test_each_mixer_has_its_own_colour_and_symbol() -> None:
    styles = mixer_styles(["attention", "gla", "hgrn", "retnet", "hgrn2", "deltanet", "gated_deltanet", "own mixer"])
    drawn = [(style.colour, style.symbol) for style in styles.values()]
    assert len(set(drawn)) == len(drawn) == 8
    assert len({style.colour for style in styles.values()}) == 7
    assert list(styles)[-1] == "attention"
    assert styles["attention"].colour == "ink"
    assert styles["own mixer"].label == "own mixer"
    assert all(style.symbol in SYMBOLS for style in styles.values())


def _linear(colour: str) -> list[float]:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]


def _contrast(a: str, b: str) -> float:
    """WCAG 2.1 contrast ratio."""
    light = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(x), strict=True)) + 0.05 for x in (a, b)]
    return max(light) / min(light)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme: str) -> None:
    colours = PALETTE[theme]
    for ground in ("paper", "raised"):
        for role in ("ink", "muted", "link"):
            assert _contrast(colours[role], colours[ground]) >= 4.5, (role, ground)
    for role in ("good", "bad", "unsure"):
        assert _contrast(colours[role], colours[f"{role}-band"]) >= 4.5, role
    for role in (role for role in colours if role.startswith("mixer-")):
        assert _contrast(colours[role], colours["paper"]) >= 3, role


#: Simulation of dichromacy on linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
VISION = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def _oklab(rgb: list[float]) -> list[float]:
    to_cone = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cone.append([0.0883024619, 0.2817188376, 0.6299787005])
    cone = [max(0.0, value) ** (1 / 3) for value in _times(to_cone, [max(0.0, value) for value in rgb])]
    to_lab = [[0.2104542553, 0.793617785, -0.0040720468], [1.9779984951, -2.428592205, 0.4505937099]]
    return _times([*to_lab, [0.0259040371, 0.7827717662, -0.808675766]], cone)


def _times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_mixers_are_told_apart_by_every_eye(theme: str, vision: str) -> None:
    roles = [role for role in PALETTE[theme] if role.startswith("mixer-")] + ["ink"]
    seen = [_oklab(_times(VISION[vision], _linear(PALETTE[theme][role]))) for role in roles]
    for index, one in enumerate(seen):
        for other in seen[:index]:
            assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 >= 0.1
