"""Softmax attention over any visibility, with the log of each query's sum: the one place where softmax is written."""

from plait.ops.softmax.operations import attention, merge, sparse_attention

__all__ = ["attention", "merge", "sparse_attention"]
