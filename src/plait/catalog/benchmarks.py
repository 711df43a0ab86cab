"""Benchmarks of prompts in words."""

from plait.catalog.method import Method

BENCHMARKS = [
    Method(
        "niah_single_1",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle1",
        "RULER, one number in noise",
        "2404.06654",
    ),
    Method(
        "niah_single_2",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle2",
        "RULER, one number in essays",
        "2404.06654",
    ),
    Method(
        "niah_single_3",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle3",
        "RULER, one UUID in essays",
        "2404.06654",
    ),
    Method(
        "niah_multikey_1",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey1",
        "RULER, one of four keys",
        "2404.06654",
    ),
    Method(
        "niah_multikey_2",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey2",
        "RULER, needles only, numbers",
        "2404.06654",
    ),
    Method(
        "niah_multikey_3",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey3",
        "RULER, needles only, UUIDs",
        "2404.06654",
    ),
    Method(
        "niah_multivalue", "benchmark", "plait.benchmarks.ruler.niah:NIAHMultivalue", "RULER, four values", "2404.06654"
    ),
    Method(
        "niah_multiquery", "benchmark", "plait.benchmarks.ruler.niah:NIAHMultiquery", "RULER, four keys", "2404.06654"
    ),
    Method(
        "vt",
        "benchmark",
        "plait.benchmarks.ruler.variable_tracking:VariableTracking",
        "RULER, variable tracking",
        "2404.06654",
    ),
    Method("cwe", "benchmark", "plait.benchmarks.ruler.common_words:CommonWords", "RULER, common words", "2404.06654"),
    Method(
        "fwe", "benchmark", "plait.benchmarks.ruler.frequent_words:FrequentWords", "RULER, frequent words", "2404.06654"
    ),
    Method("qa_1", "benchmark", "plait.benchmarks.ruler.question_answering:QA1", "RULER, SQuAD", "2404.06654"),
    Method("qa_2", "benchmark", "plait.benchmarks.ruler.question_answering:QA2", "RULER, HotpotQA", "2404.06654"),
    Method("passkey", "benchmark", "plait.benchmarks.passkey:Passkey", "Passkey retrieval", "2305.16300"),
    Method("needle", "benchmark", "plait.benchmarks.needle:Needle", "Needle in a haystack, grid", ""),
    Method(
        "json_retrieval",
        "benchmark",
        "plait.benchmarks.key_value_words:KeyValueWords",
        "Key-value retrieval from JSON",
        "2307.03172",
    ),
    Method("fda", "benchmark", "plait.benchmarks.based_recall:FDA", "FDA", "2402.18668"),
    Method("swde", "benchmark", "plait.benchmarks.based_recall:SWDE", "SWDE", "2402.18668"),
    Method(
        "squad_completion",
        "benchmark",
        "plait.benchmarks.based_recall:SquadCompletion",
        "SQuAD as completion",
        "2402.18668",
    ),
    Method(
        "xquad_completion",
        "benchmark",
        "plait.benchmarks.based_recall:XQuADCompletion",
        "XQuAD as completion",
        "1910.11856",
    ),
    Method("records", "benchmark", "plait.benchmarks.records:Records", "Made-up records", "2402.18668"),
    Method("longbench", "benchmark", "plait.benchmarks.longbench:LongBench", "LongBench", "2308.14508"),
]
