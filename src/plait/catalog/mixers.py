"""Layers that move information along the sequence."""

from functools import partial

from plait.catalog.method import Method, PaperSizes, Peer

_mixer = partial(Method, kind="mixer", shards_sequence=True, compiles=True, effective_weights=True)
#: Softmax over every earlier token.
_softmax = partial(_mixer, state="grows", work="T^2", full=True)
#: A recurrence with a state of constant size.
_linear = partial(_mixer, state="constant", work="T", recurrent=True)

MIXERS = [
    _softmax(
        name="attention",
        target="plait.mixers.attention:Attention",
        title="Softmax attention",
        paper="1706.03762",
        paper_sizes=PaperSizes(head_size=64),
    ),
    _linear(
        name="retnet",
        target="plait.mixers.retnet:RetNet",
        title="RetNet",
        paper="2307.08621",
        paper_sizes=PaperSizes({"num_heads": 8, "expand_v": 2.0}, hidden_ratio=2),
        peer=Peer("MultiScaleRetention"),
    ),
    _linear(
        name="hgrn",
        target="plait.mixers.hgrn:HGRN",
        title="HGRN",
        paper="2311.04823",
        paper_sizes=PaperSizes(),
        peer=Peer("HGRNAttention", {"use_lower_bound": False}),
    ),
    _linear(
        name="hgrn2",
        target="plait.mixers.hgrn2:HGRN2",
        title="HGRN2",
        paper="2404.07904",
        paper_sizes=PaperSizes({"expand_ratio": 128}),
        peer=Peer("HGRN2Attention", {"expand_ratio": 128, "use_lower_bound": False}),
    ),
    _linear(
        name="gla",
        target="plait.mixers.gla:GLA",
        title="Gated Linear Attention",
        paper="2312.06635",
        paper_sizes=PaperSizes({"num_heads": 4}),
        peer=Peer("GatedLinearAttention"),
    ),
    _linear(
        name="deltanet",
        target="plait.mixers.deltanet:DeltaNet",
        title="DeltaNet",
        paper="2406.06484",
        paper_sizes=PaperSizes(head_size=128),
        peer=Peer("DeltaNet", {"num_heads": 4}),
    ),
    _linear(
        name="gated_deltanet",
        target="plait.mixers.gated_deltanet:GatedDeltaNet",
        title="Gated DeltaNet",
        paper="2412.06464",
        paper_sizes=PaperSizes({"head_dim": 256}, head_size=256),
        peer=Peer("GatedDeltaNet", {"num_heads": 6, "head_dim": 256, "expand_v": 2.0}),
    ),
    _linear(
        name="kda",
        target="plait.mixers.kda:KDA",
        title="Kimi Delta Attention",
        paper="2510.26692",
        peer=Peer("KimiDeltaAttention", {"num_heads": 16, "head_dim": 128}),
    ),
    _softmax(
        name="mla",
        target="plait.mixers.mla:MLA",
        title="Multi-head latent attention",
        paper="2405.04434",
    ),
    _linear(
        name="lightning",
        target="plait.mixers.lightning:Lightning",
        title="Lightning attention",
        paper="2602.11761",
    ),
    _linear(
        name="lizard",
        target="plait.mixers.lizard:Lizard",
        title="Lizard",
        paper="2507.09025",
        state="bounded",
    ),
]
