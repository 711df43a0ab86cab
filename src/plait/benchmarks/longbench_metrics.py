"""The metrics of LongBench (2308.14508; THUDM/LongBench, ``metrics.py``), each between 0 and 1 for one right answer.

Rouge and the similarity of code come from the packages that the benchmark uses or from their successors, Chinese words
from jieba. The benchmark's ``fuzzywuzzy`` compares as ``thefuzz`` does where ``python-Levenshtein`` is installed;
where it is not, by Python's ``difflib``, which finds less in common.
"""

from __future__ import annotations

import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from plait.errors import DataError, OptionError
from plait.extras import install_command

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟"
    "｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE_PUNCTUATION)

Metric = Callable[[str, str, Sequence[str]], float]


def qa_f1(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words that answer and prediction share, in lower case, without punctuation and articles."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """:func:`qa_f1` of Chinese words, without punctuation."""
    return _f1(_chinese_words(prediction), _chinese_words(answer))


def rouge_l(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F of ROUGE-L over sentences, as the package ``rouge`` counts it; 0 for an answer without words."""
    scorer = _package("rouge", "eval").Rouge(metrics=["rouge-l"])
    try:
        found: float = scorer.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:  # how the package says that one of them is empty
        return 0.0
    return found


def rouge_l_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """:func:`rouge_l` of Chinese words."""
    return rouge_l(" ".join(_segments(prediction)), " ".join(_segments(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """One over the number of classes that the prediction names, if the right one is among them.

    A class whose name is a part of the right one's does not count. As in the benchmark, a class that stands right
    behind such a one in the list escapes this test.
    """
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1.0 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the numbers in the prediction that are the right one."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """:func:`count` of the number in an answer of the form ``Paragraph 7``."""
    return count(prediction, _paragraph(r"Paragraph (\d+)", answer))


def retrieval_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """:func:`count` of the number in an answer of the form ``段落7``."""
    return count(prediction, _paragraph(r"段落(\d+)", answer))


def code_similarity(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity, in full percent, of the answer and the first line of the prediction that is no comment."""
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    similarity: int = _package("thefuzz.fuzz", "eval").ratio(code, answer)
    return similarity / 100


#: Metric by name.
METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        qa_f1,
        qa_f1_zh,
        rouge_l,
        rouge_l_zh,
        classification,
        count,
        retrieval,
        retrieval_zh,
        code_similarity,
    )
}

#: Metric -> package and extra that it needs.
_NEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "qa_f1_zh": (("jieba", "chinese"),),
    "rouge_l": (("rouge", "eval"),),
    "rouge_l_zh": (("rouge", "eval"), ("jieba", "chinese")),
    "code_similarity": (("thefuzz", "eval"),),
}


def check_packages(metric: str) -> None:
    """Raise :class:`~plait.errors.OptionError` where a package that the metric needs is not installed."""
    for package, extra in _NEEDS.get(metric, ()):
        if find_spec(package) is None:
            raise _missing(package, extra)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _chinese_words(text: str) -> list[str]:
    words = ("".join(word.lower().translate(_NO_CHINESE_PUNCTUATION).split()) for word in _segments(text))
    return [word for word in words if word]


def _segments(text: str) -> list[str]:
    jieba = _package("jieba", "chinese")
    jieba.setLogLevel(logging.WARNING)  # it tells of its dictionary on the first use
    return list(jieba.cut(text, cut_all=False))


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    shared = sum((Counter(prediction) & Counter(answer)).values())
    return 2 * shared / (len(prediction) + len(answer)) if shared else 0.0


def _paragraph(pattern: str, answer: str) -> str:
    found = re.search(pattern, answer)
    if found is None:
        raise DataError(f"The answer {answer!r} names no paragraph; is this the right set of LongBench?")
    return found.group(1)


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise _missing(name.partition(".")[0], extra) from None


def _missing(package: str, extra: str) -> OptionError:
    return OptionError(f"This metric of LongBench needs the package {package}: {install_command(extra)}")
