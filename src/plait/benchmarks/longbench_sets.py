"""The 21 sets of LongBench: prompt, metric, longest answer; facts of the benchmark (THUDM/LongBench, ``config/``)."""

from __future__ import annotations

from typing import NamedTuple


class LongBenchSet(NamedTuple):
    """One set of the benchmark.

    Args:
        prompt: with ``{context}`` and ``{input}`` of a row.
        metric: a name of :data:`plait.benchmarks.longbench_metrics.METRICS`.
        max_new_tokens: of an answer.
        first_line: only the first line of an answer counts.
    """

    prompt: str
    metric: str
    max_new_tokens: int
    first_line: bool = False


_PASSAGES = (
    "Answer the question based on the given passages. Only give me the answer and do not output any "
    "other words.\n\nThe following are given passages.\n{context}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any "
    "other words.\n\nQuestion: {input}\nAnswer:"
)

#: Set -> what belongs to it; the spelling of the prompts is the benchmark's.
SETS: dict[str, LongBenchSet] = {
    "narrativeqa": LongBenchSet(
        (
            "You are given a story, which can be either a novel or a movie script, and a question. Answer the "
            "question asconcisely as you can, using a single phrase if possible. Do not provide any "
            "explanation.\n\nStory: {context}\n\n"
            "Now, answer the question based on the story asconcisely as you can, using a single phrase if "
            "possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:"
        ),
        "qa_f1",
        128,
    ),
    "qasper": LongBenchSet(
        (
            "You are given a scientific article and a question. Answer the question as concisely as you can, "
            "using a single phrase or sentence if possible. If the question cannot be answered based on the "
            'information in the article, write "unanswerable". If the question is a yes/no question, answer '
            '"yes", "no", or "unanswerable". Do not provide any explanation.\n\nArticle: {context}\n\n'
            " Answer the question based on the above article as concisely as you can, using a single phrase or "
            "sentence if possible. If the question cannot be answered based on the information in the article, "
            'write "unanswerable". If the question is a yes/no question, answer "yes", "no", or '
            '"unanswerable". Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:'
        ),
        "qa_f1",
        128,
    ),
    "multifieldqa_en": LongBenchSet(
        (
            "Read the following text and answer briefly.\n\n{context}\n\n"
            "Now, answer the following question based on the above text, only give me the answer and do not "
            "output any other words.\n\nQuestion: {input}\nAnswer:"
        ),
        "qa_f1",
        64,
    ),
    "multifieldqa_zh": LongBenchSet(
        "阅读以下文字并用中文简短回答：\n\n{context}\n\n现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n问题：{input}\n回答：",
        "qa_f1_zh",
        64,
    ),
    "hotpotqa": LongBenchSet(_PASSAGES, "qa_f1", 32),
    "2wikimqa": LongBenchSet(_PASSAGES, "qa_f1", 32),
    "musique": LongBenchSet(_PASSAGES, "qa_f1", 32),
    "dureader": LongBenchSet(
        "请基于给定的文章回答下述问题。\n\n文章：{context}\n\n请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
        "rouge_l_zh",
        128,
    ),
    "gov_report": LongBenchSet(
        (
            "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n"
            "{context}\n\nNow, write a one-page summary of the report.\n\nSummary:"
        ),
        "rouge_l",
        512,
    ),
    "qmsum": LongBenchSet(
        (
            "You are given a meeting transcript and a query containing a question or instruction. Answer the "
            "query in one or more sentences.\n\nTranscript:\n{context}\n\n"
            "Now, answer the query based on the above meeting transcript in one or more sentences.\n\n"
            "Query: {input}\nAnswer:"
        ),
        "rouge_l",
        512,
    ),
    "multi_news": LongBenchSet(
        (
            "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n{context}\n\n"
            "Now, write a one-page summary of all the news.\n\nSummary:"
        ),
        "rouge_l",
        512,
    ),
    "vcsum": LongBenchSet(
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n会议记录：\n{context}\n\n会议总结：",
        "rouge_l_zh",
        512,
    ),
    "trec": LongBenchSet(
        ("Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}"),
        "classification",
        64,
        first_line=True,
    ),
    "triviaqa": LongBenchSet(
        (
            "Answer the question based on the given passage. Only give me the answer and do not output any "
            "other words. The following are some examples.\n\n{context}\n\n{input}"
        ),
        "qa_f1",
        32,
        first_line=True,
    ),
    "samsum": LongBenchSet(
        ("Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}"),
        "rouge_l",
        128,
        first_line=True,
    ),
    "lsht": LongBenchSet(
        "请判断给定新闻的类别，下面是一些例子。\n\n{context}\n{input}", "classification", 64, first_line=True
    ),
    "passage_count": LongBenchSet(
        (
            "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please "
            "carefully read these paragraphs and determine how many unique paragraphs there are after removing "
            "duplicates. In other words, how many non-repeating paragraphs are there in total?\n\n{context}\n\n"
            "Please enter the final count of unique paragraphs after removing duplicates. The output format "
            "should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: "
        ),
        "count",
        32,
    ),
    "passage_retrieval_en": LongBenchSet(
        (
            "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph "
            "the abstract is from.\n\n{context}\n\nThe following is an abstract.\n\n{input}\n\n"
            "Please enter the number of the paragraph that the abstract is from. The answer format must be "
            'like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
        ),
        "retrieval",
        32,
    ),
    "passage_retrieval_zh": LongBenchSet(
        (
            "以下是若干段落文字，以及其中一个段落的摘要。请确定给定的摘要出自哪一段。\n\n{context}\n\n下面是一个摘要\n\n{input}\n\n"
            '请输入摘要所属段落的编号。答案格式必须是"段落1"，"段落2"等格式\n\n答案是：'
        ),
        "retrieval_zh",
        32,
    ),
    "lcc": LongBenchSet("Please complete the code given below. \n{context}Next line of code:\n", "code_similarity", 64),
    "repobench-p": LongBenchSet(
        "Please complete the code given below. \n{context}{input}Next line of code:\n",
        "code_similarity",
        64,
    ),
}

#: Sets that LongBench-E has too, with contexts of about equally many lengths; their names end in ``_e``.
EVEN_SETS = (
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "gov_report",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
)
