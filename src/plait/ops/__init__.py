"""Recurrences and convolutions as pure functions on tensors; stands on torch alone."""

from plait.ops.convolution import causal_convolution
from plait.ops.dispatch import BackendStatus, backend, backends, choose
from plait.ops.pieces import Piece, attention_piece, delta_piece, scan_piece
from plait.ops.recurrences import delta_rule, linear_attention, linear_scan

__all__ = [
    "BackendStatus",
    "Piece",
    "attention_piece",
    "backend",
    "backends",
    "causal_convolution",
    "choose",
    "delta_piece",
    "delta_rule",
    "linear_attention",
    "linear_scan",
    "scan_piece",
]
