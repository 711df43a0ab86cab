"""What one process of a group does for the tests, and what it finds; the same without a group is the expectation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from contracts.checks import cases, tiny_model, tokens
from plait import catalog
from plait.distributed import gather_sequence, reduce_gradients, sequence_parallel, shard_sequence
from plait.distributed.sequence import Traffic, ring
from plait.errors import PlaitError
from plait.models import DecodeStep, PlaitConfig, PlaitForCausalLM

WAYS = ("gather", "ring", "heads")
DOUBLE, SINGLE = torch.float64, torch.float32


@dataclass
class Found:
    """Outputs of one pass and its gradients; pieces of ``logits`` and ``d_inputs`` where the sequence is shared."""

    logits: Tensor
    loss: Tensor
    d_inputs: Tensor
    d_parameters: dict[str, Tensor]
    traffic: dict[str, Traffic]


def runs() -> list[tuple[str, str, torch.dtype]]:
    """Case, way of softmax attention and dtype: all in fp64, mixers at their defaults in fp32 too."""
    found = []
    for case, (mixer, options) in cases().items():
        if not catalog.get(mixer).shards_sequence:
            continue
        softmax = mixer in ("attention", "mla") and "window" not in options
        for way in WAYS if softmax else WAYS[:1]:
            found += [(case, way, DOUBLE)] + ([(case, way, SINGLE)] if case == mixer else [])
    return found


def heads(case: str) -> int:
    """Query heads of a softmax case."""
    return tiny_model(case).model.layers[0].attn.sizes[0]


def hybrid(dtype: torch.dtype = DOUBLE, **options: Any) -> PlaitForCausalLM:
    """Several mixers, convolutions, lower bounds and a window in one model."""
    config = PlaitConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=5,
        intermediate_size=48,
        layer_types=["gated_deltanet", "hgrn", "attention", "window", "hgrn"],
        mixers={"window": {"mixer": "attention", "window": 4}, "attention": {"num_heads": 4, "num_kv_heads": 2}},
        **options,
    )
    torch.manual_seed(3)
    return PlaitForCausalLM(config).to(dtype)


def labels_of(ids: Tensor) -> Tensor:
    """Labels of which the first piece counts fewer than the others."""
    labels = ids.clone()
    labels[:, 1:3] = -100
    return labels


def run_whole(model: PlaitForCausalLM, length: int) -> Found:
    """Forward and backward in one process."""
    ids = tokens(2, length)
    return _run(model, embedded(model, ids), labels_of(ids), {})


def run(
    model: PlaitForCausalLM, lengths: list[int], way: str = "gather", group: dist.ProcessGroup | None = None
) -> Found:
    """Forward and backward on this process's piece; parameters' gradients are summed over the group."""
    ids = tokens(2, sum(lengths))
    inputs, labels = (shard_sequence(x, group, lengths=lengths) for x in (embedded(model, ids), labels_of(ids)))
    with sequence_parallel(group, attention=way) as parallel:
        found = _run(model, inputs, labels, parallel.traffic)
    reduce_gradients(model, group)
    found.d_parameters = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found


def embedded(model: PlaitForCausalLM, ids: Tensor) -> Tensor:
    """Embeddings of ``ids``, without a gradient."""
    return model.get_input_embeddings()(ids).detach()


def _run(model: PlaitForCausalLM, inputs: Tensor, labels: Tensor, traffic: dict[str, Traffic]) -> Found:
    inputs = inputs.clone().requires_grad_()
    output = model(inputs_embeds=inputs, labels=labels)
    output.loss.backward()
    assert inputs.grad is not None
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Found(output.logits.detach(), output.loss.detach(), inputs.grad, gradients, traffic)


def every_case(lengths: list[int]) -> dict[tuple[str, str, torch.dtype], Found]:
    """Each case on pieces."""
    return {key: run(tiny_model(key[0], dtype=key[2]), lengths, key[1]) for key in runs() if fits(key, len(lengths))}


def fits(key: tuple[str, str, torch.dtype], size: int) -> bool:
    """Whether the heads of a case can be shared out."""
    return key[1] != "heads" or heads(key[0]) % size == 0


def volumes() -> dict[tuple[str, str, int], dict[str, Traffic]]:
    """Traffic of every mixer on equal pieces of 6 and of 12 tokens, in fp64."""
    size = dist.get_world_size()
    chosen = [key for key in runs() if key[2] == SINGLE or key[0] in ("attention-grouped", "attention-window")]
    keys = [(case, way) for case, way, dtype in chosen if fits((case, way, dtype), size)]
    return {(case, way, n): run(tiny_model(case), [n] * size, way).traffic for case, way in keys for n in (6, 12)}


def whole_models(lengths: list[int]) -> dict[str, Found]:
    """The hybrid: each way, in training with recomputed blocks, and with targets given shifted."""
    found = {way: run(hybrid(), lengths, way) for way in WAYS}
    model = hybrid().train()
    model.gradient_checkpointing_enable()
    found["checkpointing"] = run(model, lengths, "ring")
    return found


def averaged(lengths: list[int]) -> dict[str, dict[str, Tensor]]:
    """Gradients that DistributedDataParallel and FSDP2 average over the processes, of a loss times their number."""
    ids, size = tokens(2, sum(lengths)), dist.get_world_size()
    ids, labels = (shard_sequence(x, lengths=lengths) for x in (ids, labels_of(ids)))
    found = {}
    for name in ("ddp", "fsdp"):
        model = hybrid()
        if name == "fsdp":
            for block in model.model.layers:
                fully_shard(block)
            fully_shard(model)
        wrapped: Any = DistributedDataParallel(model) if name == "ddp" else model
        with sequence_parallel():
            (size * wrapped(ids, labels=labels).loss).backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found[name] = {key: g.full_tensor() if isinstance(g, DTensor) else g for key, g in gradients.items()}
    return found


def shifted_targets(lengths: list[int]) -> tuple[float, float]:
    """Loss with targets that need no neighbour, and divided by a number that the caller gives."""
    ids = tokens(2, sum(lengths))
    targets = torch.cat([labels_of(ids)[:, 1:], torch.full((2, 1), -100)], 1)
    mine, own = (shard_sequence(x, lengths=lengths) for x in (ids, targets))
    model = hybrid()
    with sequence_parallel():
        return model(mine, shift_labels=own).loss.item(), model(
            mine, shift_labels=own, num_items_in_batch=7
        ).loss.item()


def alone() -> tuple[float, dict[str, Traffic]]:
    """Groups of one: the whole sequence in each process, and nothing to send."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    found = run(hybrid(), [16], group=groups[dist.get_rank()])
    return found.loss.item(), found.traffic


def untouched_by_later_tokens(lengths: list[int]) -> dict[str, bool]:
    """Whether a piece's logits stay the same, bit for bit, when all later pieces change."""
    found = {}
    ids = tokens(2, sum(lengths))
    other = ids.clone()
    other[:, lengths[0] :] = (other[:, lengths[0] :] + 1) % 61
    for way in WAYS:
        model = hybrid()
        with torch.no_grad(), sequence_parallel(attention=way):
            a, b = (model(shard_sequence(x, lengths=lengths)).logits for x in (ids, other))
        found[way] = torch.equal(a, b)
    return found


def ring_blocks(lengths: list[int]) -> int:
    """Pieces of keys that the queries of this process meet in one layer of ring attention."""
    met, block = [], ring.attention

    def spy(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        met.append(1)
        return block(*arguments, **options)

    ring.attention = spy
    with torch.no_grad():
        run_forward(tiny_model("attention"), lengths, "ring")
    ring.attention = block
    return len(met) // 2  # the model has two layers


def run_forward(model: PlaitForCausalLM, lengths: list[int], way: str) -> Tensor:
    """Logits of this process's piece."""
    with sequence_parallel(attention=way):
        return model(shard_sequence(tokens(2, sum(lengths)), lengths=lengths)).logits


def refusals() -> dict[str, str]:
    """What is said when the last process gives what a piece cannot have, or all of them do."""
    model, ids = hybrid().eval(), tokens(2, 4)
    last = dist.get_rank() == dist.get_world_size() - 1
    mask = torch.ones_like(ids)
    mask[0, 0] = 0

    def needs_all() -> None:
        name = model.config.layers()[0].mixer
        row = catalog.get(name)
        catalog._all()["mixer", name] = dataclasses.replace(row, shards_sequence=False)
        try:
            model(ids)
        finally:
            catalog._all()["mixer", name] = row

    attempts = {
        "padding": lambda: model(ids, attention_mask=mask if last else None),
        "cache": lambda: model(ids, use_cache=last),
        "documents": lambda: model(ids, cu_seqlens=torch.tensor([0, 3, 8]) if last else None),
        "positions": lambda: model(ids, position_ids=torch.arange(4)[None] if last else None),
        "empty": lambda: model(ids[:, : 0 if last else 4]),
        "rows": lambda: model(ids[: 1 if last else 2]),
        "mixer": needs_all,
        "generation": lambda: model.generate(ids, max_new_tokens=2),
        "step": lambda: DecodeStep(model)(ids[:, :1], ids[:, :1], []),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            with sequence_parallel():
                attempt()
        except PlaitError as error:
            said[name] = str(error)
    try:
        run_forward(tiny_model("attention"), [1] * (2 * dist.get_world_size()), "gather")
    except PlaitError as error:
        said["lengths"] = str(error)
    return said


def round_trip(lengths: list[int]) -> tuple[bool, Tensor, Tensor]:
    """Whether gathering undoes sharding, the gradient of a gathered piece, and a piece of the default lengths."""
    whole = torch.arange(3.0 * sum(lengths)).view(3, sum(lengths))
    piece = shard_sequence(whole, lengths=lengths).clone().requires_grad_()
    back = gather_sequence(piece)
    (back * (dist.get_rank() + 1)).sum().backward()
    assert piece.grad is not None
    return torch.equal(back, whole), piece.grad, shard_sequence(torch.arange(7), dim=0)


def all_checks(uneven: list[int]) -> dict[str, Any]:
    """Everything, in one start of the processes."""
    even = [4] * len(uneven)
    return {
        "cases": every_case(uneven),
        "models": whole_models(uneven),
        "averaged": averaged(uneven),
        "shifted": shifted_targets(uneven),
        "volumes": volumes(),
        "alone": alone(),
        "causal": untouched_by_later_tokens(uneven),
        "blocks": ring_blocks(even),
        "refusals": refusals(),
        "round trip": round_trip(uneven),
    }
