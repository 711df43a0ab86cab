"""Ways to run a pretrained transformer with less attention work or cache."""

from plait.catalog.method import Method

POLICIES = [
    Method("dense", "policy", "plait.runtime.dense:Dense", "Dense attention", "1706.03762", "grows", full=True),
    Method(
        "streaming",
        "policy",
        "plait.policies.streaming:Streaming",
        "StreamingLLM",
        "2309.17453",
        "constant",
        sparse=True,
    ),
    Method(
        "vertical_slash",
        "policy",
        "plait.policies.vertical_slash:VerticalSlash",
        "Vertical-Slash (MInference)",
        "2407.02490",
        "grows",
        sparse=True,
    ),
    Method(
        "flex_prefill",
        "policy",
        "plait.policies.flex_prefill:FlexPrefill",
        "FlexPrefill",
        "2502.20766",
        "grows",
        sparse=True,
    ),
    Method(
        "block_sparse",
        "policy",
        "plait.policies.block_sparse:BlockSparse",
        "Block-sparse",
        "2407.02490",
        "grows",
        sparse=True,
    ),
    Method("quest", "policy", "plait.policies.quest:Quest", "Quest", "2406.10774", "grows", sparse=True),
    Method("snapkv", "policy", "plait.policies.snapkv:SnapKV", "SnapKV", "2404.14469", "grows", sparse=True),
    Method(
        "ada_snapkv", "policy", "plait.policies.ada_snapkv:AdaSnapKV", "Ada-SnapKV", "2407.11550", "grows", sparse=True
    ),
    Method("h2o", "policy", "plait.policies.h2o:H2O", "H2O", "2306.14048", "constant", sparse=True),
    Method("tova", "policy", "plait.policies.tova:Tova", "TOVA", "2401.06104", "constant", sparse=True),
    Method(
        "recycled",
        "policy",
        "plait.policies.recycled:Recycled",
        "Recycled Attention",
        "2411.05787",
        "grows",
        sparse=True,
    ),
    Method(
        "duo_attention",
        "policy",
        "plait.policies.duo_attention:DuoAttention",
        "DuoAttention",
        "2410.10819",
        "grows",
        sparse=True,
    ),
    Method(
        "prefill_decode",
        "policy",
        "plait.policies.combined:PrefillDecode",
        "One for prefill, one for decoding",
        "",
        combines=True,
    ),
    Method("per_layer", "policy", "plait.policies.combined:PerLayer", "One for each layer", "", combines=True),
]
