"""The needle grid: where the needle goes, how long prompts are, the table and its picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.probe_samples import PARAGRAPH, SHARED, count, tokenizer
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.needle import ANSWER, NEEDLE, Needle, draw_grid, grid, with_needle
from plait.errors import DataError, OptionError

BYTES = tokenizer("bytes")
SENTENCE = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."


@pytest.fixture
def haystack(tmp_path: Path) -> str:
    path = tmp_path / "haystack.txt"
    path.write_text(PARAGRAPH * 12, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, "N.one.two.three"),
        (30, "N.one.two.three"),  # int(3.9) = 3: not yet behind the first period
        (33, "one.N.two.three"),  # int(4.29) = 4: "one." ends there
        (40, "one.N.two.three"),
        (61, "one.N.two.three"),  # int(7.93) = 7: not yet behind the second period
        (62, "one.two.N.three"),  # int(8.06) = 8
        (99, "one.two.N.three"),
        (100, "one.two.threeN."),
    ],
)
def test_the_needle_moves_back_behind_a_period(depth: int, expected: str) -> None:
    hay = [ord(letter) for letter in "one.two.three"]
    found = with_needle(hay, [ord("N"), ord(".")], depth, [ord(".")])
    assert "".join(map(chr, found)) == expected


def test_without_a_period_the_needle_goes_first() -> None:
    assert with_needle([1, 2, 3], [9], 99, [7]) == [9, 1, 2, 3]
    assert with_needle([], [9], 50, [7]) == [9]


def test_the_needle_is_the_fields() -> None:
    assert f"\n{SENTENCE}\n" == NEEDLE
    assert ANSWER in SENTENCE


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_every_prompt(haystack: str, name: str) -> None:
    task = Needle(haystack=haystack, length=1600, shortest=400, lengths=3, depths=5, samples=15)
    facts = set()
    for index in range(len(task)):
        prompt = task.prompt(index, tokenizer(name))
        length, depth = prompt.facts["length"], prompt.facts["depth"]
        facts.add((length, depth))
        assert prompt.text.count(SENTENCE) == 1
        text, question = prompt.text.split("\n\nQuestion: ")
        assert question == (
            "What is the best thing to do in San Francisco?\nAnswer: The best thing to do in San Francisco is"
        )
        without = text.replace(NEEDLE, "")
        assert (PARAGRAPH * 12).startswith(without)  # the first turn begins at the start of the haystack
        assert length - 200 - 6 <= count(name, text) <= length - 200 + 6
        assert count(name, prompt.text) + prompt.max_new_tokens <= length
        before = text.index(NEEDLE)
        assert before == 0 or depth == 100 or text[before - 1] == "."
        if depth == 100:
            assert text.endswith(NEEDLE)
        elif name == "bytes":  # the nearest end of a sentence before the wanted place
            wanted = int((length - 200 - count(name, NEEDLE)) * depth / 100)
            assert before == len(without.encode()[:wanted].decode(errors="ignore").rpartition(".")[0]) + (before > 0)
        assert task.score(f" {SENTENCE}", prompt) == 1
        assert task.score(f" {SENTENCE.upper()}", prompt) == 1
        assert task.score(" eat a sandwich", prompt) == 0
    assert facts == {(length, depth) for length in (400, 1000, 1600) for depth in (0, 25, 50, 75, 100)}


def test_later_turns_begin_elsewhere_and_the_seed_shuffles(haystack: str) -> None:
    task = Needle(haystack=haystack, length=800, lengths=2, depths=2, samples=8)
    prompts = [task.prompt(index, BYTES) for index in range(8)]
    for first, second in zip(prompts[:4], prompts[4:], strict=True):
        assert first.facts == second.facts
        assert first.text != second.text
        assert len(second.text.encode()) in range(len(first.text.encode()) - 6, len(first.text.encode()) + 7)
    orders = {
        tuple(
            tuple(Needle(haystack=haystack, length=800, lengths=2, depths=2, seed=seed).prompt(i, BYTES).facts.values())
            for i in range(4)
        )
        for seed in range(6)
    }
    assert len(orders) > 1


def test_a_short_haystack_is_repeated(haystack: str) -> None:
    prompt = Needle(haystack=haystack, length=9000, lengths=1, depths=1).prompt(0, BYTES)
    assert len((PARAGRAPH * 12).encode()) < 8000
    assert len(prompt.text.encode()) in range(9000 - 200, 9000 - 64)


def test_a_cut_never_halves_a_character(tmp_path: Path) -> None:
    (tmp_path / "euros.txt").write_text("€" * 1000, encoding="utf-8")
    for length in (500, 501, 502):  # at two of three the cut falls into a character
        task = Needle(haystack=str(tmp_path / "euros.txt"), length=length, lengths=1, depths=2, samples=4)
        for index in range(4):
            assert set(task.prompt(index, BYTES).text.partition(NEEDLE)[0]) <= {"€"}
            assert set(task.prompt(index, BYTES).text.partition(NEEDLE)[2].partition("\n\n")[0]) <= {"€"}


def test_a_folder_is_joined_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Second. " * 100)
    (tmp_path / "a.txt").write_text("First. " * 100)
    (tmp_path / "c.md").write_text("Third. " * 100)
    text = Needle(haystack=str(tmp_path), length=1600, lengths=1, depths=1).prompt(0, BYTES).text.replace(NEEDLE, "")
    assert text.startswith("First. " * 100 + "Second. ")
    assert "Third" not in text


def test_presets_and_defaults(haystack: str) -> None:
    original = build_benchmark("needle", {"preset": "original", "haystack": haystack})
    assert isinstance(original, Needle)
    cells = original.cells
    assert len(cells) == len(original) == 35 * 35
    assert {depth for _, depth in cells} >= {0, 3, 50, 97, 100}
    lengths = sorted({length for length, _ in cells})
    assert (lengths[0], lengths[1], lengths[-1]) == (1000, 1441, 16000)  # 1000 + 15000/34
    small = Needle(haystack=haystack)
    assert len(small.cells) == len(small) == 64
    assert small.cells[0] == (1000, 0)
    assert small.cells[-1] == (16000, 100)


def test_grids_that_do_not_fit(haystack: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needle: question and answer take 171 tokens .*use reserved >= 171"):
        Needle(haystack=haystack, length=2000, reserved=150).prompt(0, BYTES)
    with pytest.raises(DataError, match=r"shortest >= \d+ \(now 200\)"):
        Needle(haystack=haystack, length=250, shortest=200, lengths=1, depths=1).prompt(0, BYTES)
    with pytest.raises(DataError, match="shortest prompt"):
        Needle(haystack=haystack, length=300)
    with pytest.raises(DataError, match="depths=0"):
        Needle(haystack=haystack, depths=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no text"):
        Needle(haystack=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="There is no file"):
        Needle(haystack=str(tmp_path / "none.txt"))


def test_grid_is_a_table_of_means() -> None:
    table = grid(
        [
            {"length": 2000, "depth": 50, "score": 1.0},
            {"length": 1000, "depth": 0, "score": 1.0, "samples": 3},
            {"length": 1000, "depth": 0, "score": 0.0},
            {"length": 2000, "depth": 0, "score": 0.25, "samples": 4},
        ]
    )
    assert table.lengths == (1000, 2000)
    assert table.depths == (0, 50)
    assert table.scores == ((0.75, 0.25), (None, 1.0))
    with pytest.raises(DataError, match="has no depth"):
        grid([{"length": 1, "score": 1.0}])


def test_the_picture_opens_offline(tmp_path: Path) -> None:
    results = [{"length": length, "depth": depth, "score": depth / 100} for length in (512, 1024) for depth in (0, 37)]
    path = draw_grid(grid(results), tmp_path / "grid.html", "A title of mine")
    page = path.read_text(encoding="utf-8")
    assert "A title of mine" in page
    assert '"1,024"' in page
    assert '"37 %"' in page
    assert "[[0.0,0.0],[37.0,37.0]]" in page.replace(" ", "")
    assert 'src="http' not in page
    assert len(page) > 1_000_000  # the drawing library is inside
    with pytest.raises(OptionError, match=r"must end in \.html"):
        draw_grid(grid(results), tmp_path / "grid.png")


@pytest.mark.skipif(not (SHARED / "essays").is_dir(), reason="no essays here; test_every_prompt does the same")
def test_essays() -> None:
    task = Needle(haystack=str(SHARED / "essays"), length=4000, lengths=4, depths=4, samples=16)
    for index in range(16):
        prompt = task.prompt(index, BYTES)
        assert len(prompt.text.encode()) + prompt.max_new_tokens <= prompt.facts["length"]
        before = prompt.text.index(NEEDLE)
        assert before == 0 or prompt.facts["depth"] == 100 or prompt.text[before - 1] == "."
        assert "\ufffd" not in prompt.text


def test_depths_ascend_in_the_text(haystack: str) -> None:
    task = Needle(haystack=haystack, length=3000, lengths=1, depths=6, samples=6)
    found = sorted((p.facts["depth"], p.text.index(NEEDLE)) for p in (task.prompt(i, BYTES) for i in range(6)))
    assert all(first[1] < second[1] for first, second in pairwise(found))


def test_catalogue_knows_the_benchmark() -> None:
    assert catalog.get("needle", "benchmark").load() is Needle
