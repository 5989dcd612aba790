"""`minilora show`: one claim of a report."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ...claims import CLAIMS
from ...claims.report import read_report
from ..console import program, say
from ..options import CommonOptions
from ..screen import claim_list, claim_whole, console, find_row
from .reproduce import REPORT

TEXT = "One claim whole, from the report of reproduce: what the paper says, the rule, every number, the verdicts."
EXAMPLE = "minilora show rank"


@dataclass(frozen=True)
class Options(CommonOptions):
    claim: str | None
    out: Path


def options(sub: argparse.ArgumentParser) -> None:
    names = ", ".join(claim.id for claim in CLAIMS)
    sub.add_argument("claim", metavar="NAME", nargs="?", help=f"the claim (without: a list): {names}")
    sub.add_argument("--out", type=Path, default=REPORT, help=f"folder of the report ({REPORT})")


def run(options: Options) -> None:
    rows, settings = read_report(options.out)
    columns, signs = console()
    if options.claim is not None:
        say(claim_whole(find_row(rows, options.claim), settings, options.out, columns, signs))
    else:
        out = "" if options.out == REPORT else f" --out {options.out}"
        say(claim_list(rows, settings, options.out, signs))
        say(f"\nOne of them whole: {program()} show {rows[0]['id']}{out}")
