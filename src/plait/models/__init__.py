"""Hybrid models: configuration, layer plans, decoder, cache, cost; importing this registers the Auto classes."""

from plait.models.cache import CacheSnapshot, PlaitCache
from plait.models.classification import PlaitForSequenceClassification, PlaitForTokenClassification
from plait.models.configuration import LayerSpec, PlaitConfig
from plait.models.cost import LayerCost, count_parameters, layer_costs, plan_cost
from plait.models.decoder import PlaitForCausalLM, PlaitModel
from plait.models.loading import load, register
from plait.models.pairs import count_pairs
from plait.models.plan import full_layers, layer_plan
from plait.models.step import DecodeStep

register()

__all__ = [
    "CacheSnapshot",
    "DecodeStep",
    "LayerCost",
    "LayerSpec",
    "PlaitCache",
    "PlaitConfig",
    "PlaitForCausalLM",
    "PlaitForSequenceClassification",
    "PlaitForTokenClassification",
    "PlaitModel",
    "count_pairs",
    "count_parameters",
    "full_layers",
    "layer_costs",
    "layer_plan",
    "load",
    "plan_cost",
    "register",
]
