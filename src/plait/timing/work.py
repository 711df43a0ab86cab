"""The least that an operation has to do: arithmetic of the chunkwise algorithm, or bytes of a scan.

Rates and shares of the machine's ceilings are counted against this, not against what an implementation happens to do:
recomputation, masks, exponentials, padding and copies earn nothing.
"""

from __future__ import annotations

from plait.timing.shapes import Shape

#: Tokens of a chunk in the accounting; an implementation may choose another length.
CHUNK = 64

#: Each matrix product of a forward pass has two of the same size in its backward pass.
_PASSES = {"forward": 1, "forward+backward": 3}


def chunkwise_operations(recurrence: str, shape: Shape, direction: str = "forward") -> float:
    """Multiplications and additions of the chunkwise form, in chunks of :data:`CHUNK` tokens.

    With C tokens a chunk and key and value widths K and V, each head and chunk takes, for ``linear_attention``
    (2312.06635, section 4): two products with the state, ``Q S`` and ``K^T V``, of 2 C K V operations; the lower half
    of ``Q K^T``, C^2 K; and that half times the values, C^2 V. ``delta_rule`` (2412.06464, section 3.3) has a third
    product with the state, ``K S``; the lower half of ``K K^T``, C^2 K; and a triangular solve for the values that
    are written, C^2 V.

    Args:
        recurrence: ``delta_rule`` or ``linear_attention``.
        shape: B, T, H and K = V.
        direction: ``forward`` or ``forward+backward``; the latter counts three times the former.

    Returns:
        Operations; a multiply and an add count 2.
    """
    C, K = CHUNK, shape.width
    V = K
    linear_attention = 2 * (2 * C * K * V) + C**2 * K + C**2 * V
    erasing = 2 * C * K * V + C**2 * K + C**2 * V
    each = linear_attention + (erasing if recurrence == "delta_rule" else 0)
    chunks = shape.batch * shape.heads * shape.tokens / C
    return _PASSES[direction] * chunks * each


def scan_bytes(decay_bytes: int, input_bytes: int, direction: str = "forward") -> int:
    """Bytes that a scan must read and write when each tensor passes once.

    Forward reads the decays and the inputs and writes the states, which are as large as the inputs. Backward reads the
    decays, the states and the gradient of the states, and writes the gradients of decays and inputs.

    Args:
        decay_bytes: size of ``log_a``.
        input_bytes: size of ``u``.
        direction: ``forward`` or ``forward+backward``.
    """
    forward = decay_bytes + 2 * input_bytes
    backward = 2 * decay_bytes + 3 * input_bytes
    return forward + (backward if direction == "forward+backward" else 0)
