"""``plait eval``: measure a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.cli.evaluate_suites import Chosen, Under, beside, measure_suites, print_scores, print_unavailable
from plait.cli.options import integers, key_values
from plait.cli.output import print_json, print_table, say, size
from plait.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plait.data import DataBundle
    from plait.runs.config import DataSection, RunConfig


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, or a name on the hub.")],
    corpus: Annotated[
        str | None, typer.Option(help="Measure on this text instead: python-stdlib, text:PATH or hf:NAME.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of jsonl, parquet or hub rows that holds the text.")] = "text",
    length: Annotated[int | None, typer.Option(min=1, help="Tokens per window; of the run, or 256.")] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="Held-out batches; of the run, or 32.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Rows per batch; of the run, or 16. Suites also take auto, which they start with."),
    ] = None,
    rare_below: Annotated[
        int | None, typer.Option(min=1, help="AR hits: only bigrams rarer than this in the training split.")
    ] = None,
    mqar: Annotated[str | None, typer.Option(help="Recall settings LENGTHxPAIRS, such as 64x4,128x8.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="Measure suites: recall, ruler, state, mad, longbench, lm, harness; or all.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Measure tasks or benchmarks by name: niah,passkey.")] = None,
    harness: Annotated[str | None, typer.Option(help="Measure lm-eval's tasks: lambada_openai,piqa.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Lengths of rows or prompts in tokens: 256,1024.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each; 500, or those of the set.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of the tasks and benchmarks that know it; repeat it for more.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Measure under this policy, with --suite or --tasks.")] = None,
    policy_option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the policy; repeat for more.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with files of benchmarks and of the harness.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the results; else MODEL/evaluation.")] = None,
    contexts: Annotated[str | None, typer.Option(help="Decode speed at these context lengths: 512,2048.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: what it was trained on and decoding; or suites, tasks and standard sets."""
    if suite or tasks or harness:
        own = {"--corpus": corpus, "--mqar": mqar, "--contexts": contexts, "--rare-below": rare_below}
        given = [name for name, value in own.items() if value is not None]
        if given:
            raise OptionError(f"{given[0]} does not go with --suite, --tasks or --harness: use two calls.")
        chosen = Chosen(
            _names(suite), _names(tasks), _names(harness), _lengths(lengths), limit, key_values(option or [])
        )
        under = Under(policy, key_values(policy_option or [], "policy-option"))
        measure_suites(model, chosen, under, data_dir, out, batch_size, as_json)
        return
    alone = {
        "--policy": policy,
        "--lengths": lengths,
        "--limit": limit,
        "--option": option,
        "--data-dir": data_dir,
        "--out": out,
    }
    given = [name for name, value in alone.items() if value]
    if given:
        raise OptionError(f"{given[0]} goes with --suite, --tasks or --harness, and none of them is given.")
    rows = None if batch_size is None else _positive(batch_size)
    changes: dict[str, Any] = {"batches": batches, "ar_hits_rare_below": rare_below}
    changes["decode_contexts"] = None if contexts is None else integers(contexts, "contexts")
    changes["mqar"] = None if mqar is None else _settings(mqar)

    from plait.evaluation.run import evaluate, open_model
    from plait.runs.config import DataSection, EvaluateSection
    from plait.runs.folder import model_folder, read_run_file
    from plait.sections import validated

    place = model_folder(model)
    run = read_run_file(Path(place))
    section = run.evaluate if run else EvaluateSection()
    values = {**section.model_dump(), **{key: value for key, value in changes.items() if value is not None}}
    section = validated(EvaluateSection, values, "plait eval")
    data: DataSection | None = run.data if run else None
    if corpus is not None:
        data = DataSection(corpus=corpus, field=field, length=length or (data.length if data else 256))
    elif data is not None and length is not None:
        data = data.model_copy(update={"length": length})
    network, tokenizer = open_model(place)
    if data is None and not section.decode_contexts:
        raise OptionError(f"{model} does not say what it was trained on: give --corpus, --contexts or both.")
    bundle = None if data is None else _bundle(data, model, place, run, tokenizer)
    result = evaluate(network, bundle, section, batch_size=rows or (run.training.batch_size if run else 16))
    if as_json:
        print_json(result)
    else:
        print_evaluation(result)


def print_evaluation(result: dict[str, Any]) -> None:
    """Print what :func:`plait.evaluation.run.evaluate` returns as short tables."""
    say(f"{result['parameters']:,} parameters")
    if result["lm"]:
        lm = result["lm"]
        rows = [["all", lm["loss"], 1.0, lm["tokens"]]]
        rows += [
            [name, lm[key]["loss"], lm[key]["share"], lm[key]["tokens"]]
            for key, name in (("ar_hits", "AR hits"), ("other", "other"))
            if lm[key]
        ]
        cells = [[n, "-" if loss is None else f"{loss:.4f}", f"{s:.1%}", f"{t:,}"] for n, loss, s, t in rows]
        say(f"\nHeld-out text: {lm['bits_per_byte']:.4f} bits per byte")
        if "baselines" in lm:  # older results have none
            say(beside(lm["bits_per_byte"], lm["baselines"]))
        say()
        print_table(["tokens", "loss (nats)", "share", "count"], cells, right=(1, 2, 3))
    if result["mqar"]:
        say("\nAssociative recall (MQAR)")
        rows = [[s["length"], s["pairs"], f"{s['accuracy']:.1%}", s["examples"]] for s in result["mqar"]]
        print_table(["length", "pairs", "accuracy", "examples"], [list(map(str, r)) for r in rows], right=(0, 1, 2, 3))
    scores = [one for one in [*result["tasks"], *result["suites"]] if "reason" not in one]
    if scores:
        say("\nTasks and suites")
        print_scores(scores)
    print_unavailable([one for one in result["suites"] if "reason" in one])
    if result["decode"]:
        say("\nDecoding one sequence")
        rows = [
            [f"{d['context']:,}", f"{d['tokens_per_second']:,.0f}", size(d["cache_bytes"])] for d in result["decode"]
        ]
        print_table(["context", "tokens/s", "cache"], rows, right=(0, 1, 2))


def _bundle(
    data: DataSection, model: str, place: str, run: RunConfig | None, tokenizer: PreTrainedTokenizerBase | None
) -> DataBundle:
    from plait.data import build
    from plait.runs.folder import DATA_FOLDER, RUN_FILE

    if data.corpus is not None and tokenizer is None:
        raise OptionError(f"{model} has no tokenizer, so it cannot be measured on text.")
    parents = [folder for folder in (Path(place), Path(place).parent) if (folder / RUN_FILE).exists()]
    shared = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plait"
    folder = parents[-1] / DATA_FOLDER if parents and parents[-1] != Path(place) else shared
    return build(data, folder, run.seed if run else 0, tokenizer)  # type: ignore[arg-type]


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _lengths(text: str | None) -> list[int]:
    return [] if text is None else integers(text, "lengths")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"--batch-size {text!r} must be a whole number of at least 1 (auto goes with --suite).")
    return int(text)


def _settings(text: str) -> list[dict[str, int]]:
    pairs = [part.strip().split("x") for part in text.split(",")]
    if not all(len(pair) == 2 and all(number.isdecimal() for number in pair) for pair in pairs):
        raise OptionError(f"--mqar {text!r}: write LENGTHxPAIRS with commas between, such as 64x4,128x8.")
    return [{"length": int(length), "pairs": int(count)} for length, count in pairs]
