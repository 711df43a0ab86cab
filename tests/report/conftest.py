"""Summaries of invented studies, and a small client of headless Chromium."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from plait.statistics.interval import Interval
from plait.study.summary import (
    Configuration,
    Curve,
    FailedTrial,
    Guard,
    Judgement,
    Recommendation,
    StudySummary,
)

LAYERS = 8
RATIOS = {"pure": [], "7:1": [7], "3:1": [3, 7], "1:1": [1, 3, 5, 7]}
CONTEXTS = [256, 1024, 4096]
#: mixer -> (loss of the pure model, recall of the pure model, bytes of state per layer)
MIXERS = {
    "gated_deltanet": (1.93, 0.86, 33_000),
    "hgrn2": (1.95, 0.61, 32_768),
    "gla": (1.97, 0.55, 16_384),
    "deltanet": (1.94, 0.83, 18_000),
    "hgrn": (2.01, 0.12, 512),
    "retnet": (1.99, 0.38, 32_768),
}


def _interval(
    rng: random.Random, mean: float, spread: float, n: int = 3, over: Literal["seeds", "samples"] = "seeds"
) -> Interval:
    if n == 1:
        return Interval(mean=mean, low=mean, high=mean, n=1, over="none")
    return Interval(
        mean=mean, low=mean - spread * rng.uniform(0.6, 1.4), high=mean + spread * rng.uniform(0.6, 1.4), n=n, over=over
    )


def _configuration(
    rng: random.Random, mixer: str, ratio: str, full: list[int], state: int, loss: float, recall: float
) -> Configuration:
    linear = LAYERS - len(full)
    metrics = {
        "loss": _interval(rng, loss * math.log(2), 0.006),
        "bits_per_byte": _interval(rng, loss, 0.009),
        "ar_loss": _interval(rng, loss * 0.42 - 0.05 * len(full) ** 0.5 / 2, 0.008),
        "other_loss": _interval(rng, loss * 0.81, 0.008),
        "recall": _interval(rng, recall, 0.02 if recall < 0.97 else 0.004),
    }
    for length, pairs, penalty in ((64, 4, -0.02), (128, 8, 0.0), (256, 16, 0.05)):
        metrics[f"recall@{length}x{pairs}"] = _interval(rng, min(0.999, max(0.01, recall - penalty)), 0.02)
    for context in CONTEXTS:
        metrics[f"decode@{context}"] = _interval(
            rng, 640 / (1 + 0.00006 * context * len(full)) + rng.uniform(-12, 12), 6, 5, "samples"
        )
    return Configuration(
        key="transformer" if ratio == "full" else f"{mixer} {ratio}",
        mixer=mixer,
        ratio=ratio,
        placement="block_r_plus_1",
        n_linear=linear,
        n_full=len(full),
        full_layers=full,
        parameters={"lm": 1_640_960 + linear * 12_345, "recall": 1_640_960 + linear * 12_345},
        cache_bytes={context: linear * state + len(full) * 2 * context * 128 * 2 for context in CONTEXTS},
        metrics=metrics,
        seeds={"lm": [0, 1, 2], "recall": [0, 1, 2]},
    )


def _curves(rng: random.Random, configurations: list[Configuration]) -> list[Curve]:
    curves = []
    for one in configurations:
        for track, start in (("lm", 5.5), ("recall", 4.2)):
            end = one.metrics["loss"].mean if track == "lm" else 0.02 + 2.5 * (1 - one.metrics["recall"].mean)
            for seed in one.seeds[track]:
                points = [
                    (step, end + (start - end) * math.exp(-step / 160) * rng.uniform(0.95, 1.05) + 0.02 * rng.random())
                    for step in range(10, 1201, 10)
                ]
                curves.append(Curve(key=one.key, track=track, seed=seed, points=points))
    return curves


def full_study(seed: int = 0) -> StudySummary:
    """All six mixers at four ratios and the transformer, three seeds, two tracks, one failed trial."""
    rng = random.Random(seed)
    configurations = [_configuration(rng, "attention", "full", list(range(LAYERS)), 0, 1.90, 0.993)]
    for mixer, (loss, recall, state) in MIXERS.items():
        for ratio, full in RATIOS.items():
            gain = 0 if not full else 1 - 0.35 / len(full)
            reached = recall + (0.995 - recall) * gain * (0.25 if mixer == "hgrn" else 1)
            configurations.append(_configuration(rng, mixer, ratio, full, state, loss - 0.03 * gain, reached))
    last = CONTEXTS[-1]
    front, best = [], -1.0
    for one in sorted(configurations, key=lambda one: one.cache_bytes[last]):
        if one.metrics["recall"].mean > best:
            front.append(one.key)
            best = one.metrics["recall"].mean
    return StudySummary(
        name="hybrid-linear-mini",
        description="Six linear mixers at four ratios beside a transformer, on the standard library and on recall.",
        created="2026-03-02T14:05:11+00:00",
        command="plait study run studies/hybrid-linear-mini.yaml --workers 2",
        seconds=5025.0,
        versions={"plait": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        machine="Linux x86_64, 2 cores, CPU",
        tracks={"lm": "language modelling on python-stdlib, bytes", "recall": "mqar, 64 to 256 tokens"},
        configurations=configurations,
        pareto=front,
        curves=_curves(rng, configurations),
        guards=[
            Guard(
                track="recall",
                baseline="transformer",
                accuracy=0.993,
                threshold=0.9,
                learnt=True,
                message="The transformer learnt the recall track: accuracy 0.993, threshold 0.900.",
            )
        ],
        recommendation=Recommendation(
            key="gated_deltanet 3:1",
            sentences=[
                "Take gated_deltanet 3:1 (6 linear and 2 full layers): it holds 4.19 MiB at 4,096 tokens, "
                "3.8 times less than the transformer.",
                "Recall is 0.971 (0.968 to 0.976) against 0.993 (0.989 to 0.997) of the transformer and loss is "
                "1.321 (1.317 to 1.326), 0.3% above the lowest.",
            ],
        ),
        claims=[
            Judgement(
                name="loss_hardly_moves_with_the_ratio",
                title="Loss hardly moves with the ratio",
                paper="2507.06457",
                sentence="Language modelling scores are stable across linear-to-full ratios.",
                published="LM average moves by less than .01 between 24:1 and 3:1.",
                rule="Holds if the loss of every mixer spreads by less than 3 % over the ratios.",
                verdict="holds",
                seen="The largest spread is 1.6 % (hgrn).",
            ),
            Judgement(
                name="recall_grows_with_full_layers",
                title="Recall grows with full layers",
                paper="2507.06457",
                sentence="Recall improves with more full attention layers, particularly below a 3:1 ratio.",
                published="Mean RULER .256 pure, .397 at 3:1.",
                rule="Holds if Spearman's rank correlation is at least 0.8 for every mixer.",
                verdict="does not hold",
                seen="hgrn: 0.60.",
            ),
            Judgement(
                name="the_ranking_changes",
                title="The ranking changes",
                paper="2507.06457",
                sentence="The best mixer alone is not the best mixer in a hybrid.",
                published="Gated DeltaNet best pure, HGRN-2 best hybrid.",
                rule="Holds if the intervals of two mixers separate in opposite order.",
                verdict="inconclusive",
                seen="The intervals of the first three overlap.",
            ),
        ],
        failed=[
            FailedTrial(
                trial="3f9c2a71",
                key="retnet 7:1",
                track="lm",
                seed=2,
                error="TrainingError: the loss is not finite at step 412; the last good checkpoint is checkpoint-400.",
                log="runs/hybrid-linear-mini/trials/3f9c2a71/log.txt",
            )
        ],
        trials=150,
        finished=149,
        study={
            "name": "hybrid-linear-mini",
            "grid": {"mixers": list(MIXERS), "ratios": list(RATIOS)},
            "seeds": [0, 1, 2],
            "base": {"model": {"hidden_size": 128, "num_hidden_layers": LAYERS}, "training": {"betas": (0.9, 0.95)}},
        },
    )


def minimal_study() -> StudySummary:
    """One mixer at one ratio, one seed, language modelling alone, nothing to recommend."""
    one = Configuration(
        key="gla 3:1",
        mixer="gla",
        ratio="3:1",
        placement="block_r_plus_1",
        n_linear=3,
        n_full=1,
        full_layers=[3],
        parameters={"lm": 100_000},
        cache_bytes={1024: 70_000},
        metrics={"loss": Interval(mean=1.5, low=1.4, high=1.6, n=8, over="samples")},
        seeds={"lm": [0]},
    )
    return StudySummary(
        name="one",
        description="",
        created="2026-03-02T14:05:11+00:00",
        command="plait study run one.yaml",
        seconds=42.0,
        versions={"plait": "0.1.0"},
        machine="Linux",
        tracks={"lm": "language modelling"},
        configurations=[one],
        pareto=[],
        curves=[],
        guards=[],
        recommendation=Recommendation(key=None, sentences=["The study has no transformer to compare with."]),
        claims=[],
        failed=[],
        trials=1,
        finished=1,
        study={"name": "one"},
    )


class Browser:
    """A WebDriver session of headless Chromium, spoken to in plain HTTP (W3C WebDriver)."""

    def __init__(self, profile: Path, chromium: str, chromedriver: str) -> None:
        self.driver = subprocess.Popen(
            [chromedriver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            self.address = self._address()
            flags = (
                "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
                "disable-component-update disable-sync"
            )
            options = {
                "binary": chromium,
                "args": [f"--{flag}" for flag in flags.split(" ")] + [f"--user-data-dir={profile}"],
            }
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.address += f"/session/{answer['sessionId']}"
        except BaseException:
            self._end()
            raise

    def _address(self) -> str:
        assert self.driver.stdout is not None
        for line in self.driver.stdout:
            found = re.search(r"started successfully on port (\d+)", line)
            if found:
                return f"http://127.0.0.1:{found[1]}"
        raise RuntimeError(f"chromedriver ended with status {self.driver.wait()} before it listened")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def open(self, page: Path) -> None:
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function body returns; a promise is awaited."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def log(self) -> list[dict[str, Any]]:
        """Messages of the console since the last call."""
        return self._call("POST", "/se/log", {"type": "browser"})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def width(self, pixels: int, height: int = 900) -> None:
        """Give the page this width; narrow ones behave as a phone does."""
        phone = pixels < 600
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=pixels,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.settle()

    def scheme(self, name: str, media: str = "") -> None:
        """Emulate ``light`` or ``dark``, and a medium such as ``print``."""
        self.devtools(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": name}]
        )
        self.settle()

    def settle(self) -> None:
        """Wait until plotly has redrawn for a new size."""
        self.run("return new Promise((done) => setTimeout(() => requestAnimationFrame(() => done(true)), 250))")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        image = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self.driver.terminate()
        try:
            self.driver.wait(10)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        reason = "no chromium and chromedriver on PATH; install both to test the report in a browser"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    session = Browser(tmp_path_factory.mktemp("profile"), chromium, chromedriver)
    yield session
    session.close()


@pytest.fixture(scope="session")
def full_summary() -> StudySummary:
    return full_study()


@pytest.fixture(scope="session")
def minimal_summary() -> StudySummary:
    return minimal_study()
