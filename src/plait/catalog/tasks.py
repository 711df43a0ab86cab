"""Synthetic tasks of token ids."""

from plait.catalog.method import Method

TASKS = [
    Method("mqar", "task", "plait.data.tasks.mqar:MQAR", "Multi-query associative recall", "2312.04927"),
    Method("lag", "task", "plait.data.tasks.lag:Lag", "Lag", "Jaeger 2002"),
    Method("key_value", "task", "plait.data.tasks.key_value:KeyValueRetrieval", "Key-value retrieval", "2307.03172"),
    Method("niah", "task", "plait.data.tasks.niah:NeedleInHaystack", "Needle in a haystack", "2404.06654"),
    Method("niah_multikey", "task", "plait.data.tasks.niah:MultiKey", "Needles, several keys", "2404.06654"),
    Method("niah_multiquery", "task", "plait.data.tasks.niah:MultiQuery", "Needles, several queries", "2404.06654"),
    Method("niah_multivalue", "task", "plait.data.tasks.niah:MultiValue", "Needles, several values", "2404.06654"),
    Method(
        "variable_tracking",
        "task",
        "plait.data.tasks.variable_tracking:VariableTracking",
        "Variable tracking",
        "2404.06654",
    ),
    Method("parity", "task", "plait.data.tasks.state_tracking:Parity", "Parity", "2207.02098"),
    Method(
        "cycle_navigation", "task", "plait.data.tasks.state_tracking:CycleNavigation", "Cycle navigation", "2207.02098"
    ),
    Method(
        "modular_arithmetic",
        "task",
        "plait.data.tasks.state_tracking:ModularArithmetic",
        "Modular arithmetic",
        "2207.02098",
    ),
    Method(
        "word_problem", "task", "plait.data.tasks.word_problems:WordProblem", "Word problems of groups", "2404.08819"
    ),
    Method(
        "mad_in_context_recall",
        "task",
        "plait.data.tasks.mad.recall:InContextRecall",
        "MAD: in-context recall",
        "2403.17844",
    ),
    Method(
        "mad_fuzzy_recall", "task", "plait.data.tasks.mad.fuzzy_recall:FuzzyRecall", "MAD: fuzzy recall", "2403.17844"
    ),
    Method("mad_noisy_recall", "task", "plait.data.tasks.mad.recall:NoisyRecall", "MAD: noisy recall", "2403.17844"),
    Method(
        "mad_selective_copying",
        "task",
        "plait.data.tasks.mad.selective_copying:SelectiveCopying",
        "MAD: selective copying",
        "2403.17844",
    ),
    Method("mad_compression", "task", "plait.data.tasks.mad.compression:Compression", "MAD: compression", "2403.17844"),
    Method(
        "mad_memorization", "task", "plait.data.tasks.mad.memorization:Memorization", "MAD: memorization", "2403.17844"
    ),
    Method("list_ops", "task", "plait.data.tasks.list_ops:ListOps", "ListOps", "2011.04006"),
    Method("pixels", "task", "plait.data.tasks.pixels:Pixels", "Pixel sequences", "2011.04006"),
]
