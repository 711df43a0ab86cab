"""The student: the teacher's weights, with other mixers in some of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plait.conversion.recipe import Recipe
from plait.errors import OptionError
from plait.mixers.attention import Attention, AttentionOptions
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import from_transformers
from plait.models.configuration import ATTENTION_SIZES

#: Entry of ``layer_types`` for layers that stay attention.
KEPT = "attention"


def as_teacher(model: PreTrainedModel) -> PlaitForCausalLM:
    """A transformer as plait's own model: a Llama or Qwen3 of transformers, or one that plait trained.

    Raises:
        OptionError: another architecture, or a layer that is not softmax attention.
    """
    teacher = model if isinstance(model, PlaitForCausalLM) else from_transformers(model)
    specs = teacher.config.layers()
    for index, spec in enumerate(specs):
        if spec.mixer != "attention" or spec.options != specs[0].options:
            raise OptionError(
                f"Layer {index} is {spec.name}: plait convert takes models whose layers are all the same "
                "softmax attention."
            )
    return teacher.to(model.device).eval().requires_grad_(False)  # type: ignore[arg-type]


def attention_options(teacher: PlaitForCausalLM) -> AttentionOptions:
    """The options that the teacher's layers share."""
    options = teacher.config.layers()[0].options
    assert isinstance(options, AttentionOptions)
    return options


def hybrid_config(
    teacher: PlaitForCausalLM, recipe: Recipe, kept: Collection[int], *, unchanged: bool = False
) -> PlaitConfig:
    """The student's configuration.

    Args:
        teacher: gives the sizes.
        recipe: gives the mixers.
        kept: layers that stay attention.
        unchanged: leave those exactly the teacher's.

    Raises:
        OptionError: the recipe's mixer cannot be told from the layers that stay.
    """
    options = attention_options(teacher)
    twin, twin_options = recipe.twin(options, options.heads(teacher.config.dims))
    if twin == KEPT:
        raise OptionError(
            f"The recipe {type(recipe).__name__} names its mixer {KEPT!r}, as the layers that stay are named: give it "
            f"another name, with {{'mixer': {KEPT!r}}} among its options."
        )
    changes = {} if unchanged else recipe.kept(options)
    values = teacher.config.to_dict()
    for key in ("architectures", "auto_map", "dtype", "model_type", "transformers_version", *ATTENTION_SIZES):
        values.pop(key, None)
    layers = range(len(teacher.model.layers))
    values["layer_types"] = [KEPT if index in kept else twin for index in layers]
    values["mixers"] = {KEPT: {**_given(options), **changes}, twin: twin_options}
    return PlaitConfig(**values)


def build_student(
    teacher: PlaitForCausalLM,
    recipe: Recipe,
    kept: Collection[int],
    *,
    seed: int,
    twins: PlaitForCausalLM | None = None,
    transfer: bool = True,
    unchanged: bool = False,
) -> PlaitForCausalLM:
    """A student with new mixers in all layers but ``kept``.

    Args:
        teacher: every weight outside the new mixers is a copy of its.
        recipe: the mixers, and what they take from attention.
        kept: layers that stay attention.
        seed: of weights that come from nowhere else.
        twins: a student whose mixers in the other layers are taken over, such as aligned ones.
        transfer: False leaves new mixers as they start from nothing.
        unchanged: leave kept layers exactly the teacher's.
    """
    config = hybrid_config(teacher, recipe, kept, unchanged=unchanged)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = PlaitForCausalLM(config)
    weights = {name: value for name, value in teacher.state_dict().items() if ".attn." not in name}
    for index, block in enumerate(teacher.model.layers):
        attention, mixer = block.attn, student.model.layers[index].attn
        assert isinstance(attention, Attention)
        found: dict[str, Tensor] = {}
        if index in kept:
            own = {} if unchanged else recipe.kept_weights(attention, mixer)  # type: ignore[arg-type]
            found = {**attention.state_dict(), **own}
        elif twins is not None:
            found = twins.model.layers[index].attn.state_dict()  # type: ignore[union-attr]
        elif transfer:
            found = recipe.twin_weights(attention, mixer)  # type: ignore[arg-type]
        weights |= {f"model.layers.{index}.attn.{name}": value for name, value in found.items()}
    unknown = student.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise OptionError(f"The recipe {type(recipe).__name__} fills {unknown[0]}, which the student does not have.")
    return student.to(teacher.device, torch.float32).eval()  # type: ignore[arg-type]


def converted_layers(student: PlaitForCausalLM) -> list[int]:
    """Indices of layers that are no longer the teacher's attention."""
    return [index for index, spec in enumerate(student.config.layers()) if spec.name != KEPT]


def select_trained(student: PlaitForCausalLM, recipe: Recipe, stage: str) -> list[str]:
    """Let gradients flow into what ``stage`` trains, and nothing else; returns the names."""
    places = tuple(f"model.layers.{index}.attn." for index in converted_layers(student))
    names = []
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(recipe.trains(stage, name, name.startswith(places)))
        if parameter.requires_grad:
            names.append(name)
    return names


def joined(layers: Iterable[int]) -> str:
    """Layers for people: ``3, 7`` or ``none``."""
    return ", ".join(map(str, layers)) or "none"


def _given(options: AttentionOptions) -> dict[str, Any]:
    """Options that differ from their defaults."""
    fields = dataclasses.fields(options)
    return {f.name: getattr(options, f.name) for f in fields if getattr(options, f.name) != f.default}
