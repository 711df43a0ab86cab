"""Recurrences and convolutions as pure functions on tensors; stands on torch alone."""

from plait.ops.convolution import causal_convolution
from plait.ops.dispatch import BackendStatus, backend, backends, choose
from plait.ops.recurrences import delta_rule, linear_attention, linear_scan

__all__ = [
    "BackendStatus",
    "backend",
    "backends",
    "causal_convolution",
    "choose",
    "delta_rule",
    "linear_attention",
    "linear_scan",
]
