"""Softmax attention over any visibility, with the log of each query's sum: the one place where softmax is written."""

from plait.ops.softmax.operations import attention, merge, sparse_attention
from plait.ops.softmax.placed import attention_weights, placed_attention

__all__ = ["attention", "attention_weights", "merge", "placed_attention", "sparse_attention"]
