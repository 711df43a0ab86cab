"""Parts that mixers share: norms, rotary positions, the short convolution, the feed-forward block."""

from plait.nn.convolution import ShortConvolution
from plait.nn.feed_forward import SwiGLU, swiglu_width
from plait.nn.norm import GatedRMSNorm, RMSNorm, l2_norm, widen
from plait.nn.rotary import rotary, rotary_table, rotate

__all__ = [
    "GatedRMSNorm",
    "RMSNorm",
    "ShortConvolution",
    "SwiGLU",
    "l2_norm",
    "rotary",
    "rotary_table",
    "rotate",
    "swiglu_width",
    "widen",
]
