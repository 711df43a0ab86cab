"""Softmax attention over any visibility, with the log of each query's sum: the one place where softmax is written."""

from plait.ops.softmax.operations import attention, attention_gradients, merge, sparse_attention
from plait.ops.softmax.outputs import attention_matrix, attention_output, log_sums, scores
from plait.ops.softmax.placed import attention_weights, placed_attention

__all__ = [
    "attention",
    "attention_gradients",
    "attention_matrix",
    "attention_output",
    "attention_weights",
    "log_sums",
    "merge",
    "placed_attention",
    "scores",
    "sparse_attention",
]
