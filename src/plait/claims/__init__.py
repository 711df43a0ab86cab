"""Published statements turned into small experiments whose verdict is fixed in advance."""

from plait.claims.contract import Claim, Evidence, Measurement
from plait.claims.run import kept_evidence, load_claim, read_evidence, run_claim

__all__ = ["Claim", "Evidence", "Measurement", "kept_evidence", "load_claim", "read_evidence", "run_claim"]
