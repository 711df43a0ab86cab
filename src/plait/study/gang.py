"""The processes of one trial on one machine: torchrun, with an exit status that tells a kill from a failure.

Started as ``python -m plait.study.gang``, with the arguments of torchrun. The status is 128 and the signal's number
where one of the processes was ended by a signal, 1 where one failed by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: Added to a signal's number, as shells do.
SIGNAL_STATUS = 128


def main(arguments: Sequence[str]) -> int:
    """Run torchrun and say how it ended, as an exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        signals = [-failure.exitcode for failure in error.failures.values() if failure.exitcode < 0]
        return SIGNAL_STATUS + signals[0] if signals else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
