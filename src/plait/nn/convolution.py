"""The short causal convolution in front of a recurrence."""

from __future__ import annotations

from torch import Tensor, nn

from plait.ops import causal_convolution


class ShortConvolution(nn.Conv1d):
    """Depthwise causal convolution without bias: ``y_t = silu(sum_j w[:, 0, kernel-1-j] * x_{t-j})``.

    ``weight`` is ``(C, 1, kernel)``; its last tap meets the current token.

    Args:
        channels: C.
        kernel: number of taps.
        activation: apply silu to the result.
    """

    def __init__(self, channels: int, kernel: int = 4, activation: bool = True) -> None:
        super().__init__(channels, channels, kernel, groups=channels, bias=False)
        self.activation = activation

    def forward(  # type: ignore[override]
        self, x: Tensor, tail: Tensor | None = None, padding: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Convolve along the sequence.

        Args:
            x: ``(B, T, C)``.
            tail: ``(B, kernel - 1, C)``, the inputs before ``x``, or None for none.
            padding: ``(B,)`` slots at the front of each row that are skipped, or None.
            cu_seqlens: ``(N + 1,)`` borders of packed documents, or None; the tail then has N rows.

        Returns:
            the result ``(B, T, C)`` and the new tail.
        """
        return causal_convolution(
            x, self.weight.squeeze(1), tail=tail, padding=padding, cu_seqlens=cu_seqlens, silu=self.activation
        )
