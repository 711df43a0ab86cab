"""MAD, mechanistic architecture design: six small tasks whose mean accuracy foretells how an architecture scales.

Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (2403.17844), and its code (athms/mad-lab). Every
task has a ``baseline`` preset and one preset for each published change of one option, such as ``length-256``; together
they are the settings that :func:`mad_score` averages. Ids are those of the published code: content counts from 0 and
marks take the highest ids.
"""

from plait.data.tasks.mad.base import MadTask, mad_score
from plait.data.tasks.mad.compression import Compression
from plait.data.tasks.mad.fuzzy_recall import FuzzyRecall
from plait.data.tasks.mad.memorization import Memorization
from plait.data.tasks.mad.recall import InContextRecall, NoisyRecall
from plait.data.tasks.mad.selective_copying import SelectiveCopying

__all__ = [
    "Compression",
    "FuzzyRecall",
    "InContextRecall",
    "MadTask",
    "Memorization",
    "NoisyRecall",
    "SelectiveCopying",
    "mad_score",
]
