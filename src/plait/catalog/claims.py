"""Published statements with their experiments."""

from plait.catalog.method import Method

CLAIMS = [
    Method(
        "best_pure_is_not_best_hybrid",
        "claim",
        "plait.claims.hybrid_study:BestPureIsNotBestHybrid",
        "The best pure mixer is not the best in a hybrid",
        "2507.06457",
    ),
    Method(
        "loss_hardly_depends_on_ratio",
        "claim",
        "plait.claims.hybrid_study:LossHardlyDependsOnRatio",
        "The loss hardly depends on the ratio",
        "2507.06457",
    ),
    Method(
        "recall_grows_with_full_layers",
        "claim",
        "plait.claims.hybrid_study:RecallGrowsWithFullLayers",
        "Recall grows with full layers",
        "2507.06457",
    ),
    Method(
        "gates_reach_the_transformer",
        "claim",
        "plait.claims.hybrid_study:GatesReachTheTransformer",
        "Gated and delta mixers reach the transformer",
        "2507.06457",
    ),
    Method(
        "recall_grows_with_the_state",
        "claim",
        "plait.claims.state_size:RecallGrowsWithTheState",
        "Recall grows with the state",
        "2402.18668",
    ),
    Method(
        "retrieval_heads_are_sparse",
        "claim",
        "plait.claims.retrieval:RetrievalHeadsAreSparse",
        "Retrieval heads are sparse",
        "2404.15574",
    ),
    Method(
        "retrieval_heads_are_causal",
        "claim",
        "plait.claims.retrieval:RetrievalHeadsAreCausal",
        "Retrieval heads are causal",
        "2404.15574",
    ),
    Method(
        "sinks_keep_a_window_alive",
        "claim",
        "plait.claims.window_sinks:SinksKeepAWindowAlive",
        "Sinks keep a window alive",
        "2309.17453",
    ),
    Method(
        "a_fraction_of_heads_suffices",
        "claim",
        "plait.claims.duo:AFractionOfHeadsSuffices",
        "A fraction of the heads suffices",
        "2410.10819",
    ),
    Method(
        "chosen_layers_beat_even_ones",
        "claim",
        "plait.claims.halo:ChosenLayersBeatEvenOnes",
        "Chosen layers beat even ones",
        "2601.22156",
    ),
]
