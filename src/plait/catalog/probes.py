"""Measurements inside a model."""

from plait.catalog.method import Method

PROBES = [
    Method("retrieval_heads", "probe", "plait.probes.retrieval_heads:RetrievalHeads", "Retrieval heads", "2404.15574"),
    Method("attention_sinks", "probe", "plait.probes.attention_sinks:AttentionSinks", "Attention sinks", "2410.10781"),
    Method(
        "attention_entropy",
        "probe",
        "plait.probes.attention_entropy:AttentionEntropy",
        "Attention entropy",
        "2303.06296",
    ),
    Method(
        "logit_growth", "probe", "plait.probes.logit_growth:LogitGrowth", "Growth of attention logits", "2501.19399"
    ),
    Method(
        "secondary_sinks",
        "probe",
        "plait.probes.secondary_sinks:SecondarySinks",
        "Secondary attention sinks",
        "2512.22213",
    ),
    Method("state_norms", "probe", "plait.probes.state_norms:StateNorms", "Norms of recurrent states", ""),
]
