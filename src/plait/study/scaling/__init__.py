"""Scaling laws: loss, best size and best number of tokens against compute, by architecture.

After "Scaling Laws for Linear Complexity Language Models" (2406.16690). ``counters`` and ``plan`` count parameters and
FLOPs, ``envelope`` finds the lowest loss for each amount of compute, ``laws`` and ``allocation`` fit, ``retrieval``
weighs needles in haystacks, ``file``, ``summarise`` and ``page`` make a study of it.
"""
