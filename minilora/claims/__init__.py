"""The paper's claims, one file each. To add one: write the file, and put its name in this list."""

from __future__ import annotations

from . import alpha_learning_rate, rank, zero_init
from .claim import Claim

CLAIMS: tuple[Claim, ...] = tuple(module.CLAIM for module in (zero_init, alpha_learning_rate, rank))


def find(names: list[str]) -> list[Claim]:
    """The claims of these ids, in the list's order; all where none is named. `ValueError` for an unknown one."""
    known = {claim.id: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            raise ValueError(f"There is no claim {name!r}; there are: {', '.join(known)}.")
    return [claim for claim in CLAIMS if not names or claim.id in names]
