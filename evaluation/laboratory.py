"""Measures whether a judge of synthesizability recalls sheets that have been made in a laboratory.

``data/laboratory_sheets.csv`` lists sheets of the embedded database whose monolayer or layered parent is on record, with the DOI of
a paper or the number of an entry of the ICSD or COD, as C2DB names them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db

from crystals.database import formula_key
from evaluation.candidate import P_SYNTH_THRESHOLD
from evaluation.synthesizability import SynthesizabilityJudge
from pipeline.files import PROJECT_DIR

TABLE = PROJECT_DIR / "data" / "laboratory_sheets.csv"
DATABASE = PROJECT_DIR / "data" / "demo_c2db.db"


def laboratory_sheets(table: Path = TABLE) -> list[dict[str, str]]:
    """Return the rows of the table: ``uid`` (of the embedded database), ``formula``, ``family``, ``doi``, ``icsd``, ``cod``."""
    with table.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def laboratory_recall(judge: SynthesizabilityJudge, side_of: Callable[[str], str]) -> dict[str, Any]:
    """Count the listed sheets to which a judge gives P_synth of at least one half.

    Args:
        judge: any judge of synthesizability.
        side_of: formula key -> side of the split on which the judge was trained.

    Returns:
        ``n``, ``recalled``; the same of formulas that the judge has not seen, ``held_out_n`` and ``held_out_recalled``; ``missed``,
        the uids below one half or without a value.
    """
    rows = laboratory_sheets()
    with ase.db.connect(str(DATABASE)) as database:
        sheets = [database.get(uid=row["uid"]).toatoms() for row in rows]
    passed = [score.p_synth >= P_SYNTH_THRESHOLD for score in judge.score(sheets)]
    held_out = [side_of(formula_key(row["formula"])) != "train" for row in rows]
    return {
        "n": len(rows),
        "recalled": sum(passed),
        "held_out_n": sum(held_out),
        "held_out_recalled": sum(p for p, h in zip(passed, held_out, strict=True) if h),
        "missed": [row["uid"] for row, p in zip(rows, passed, strict=True) if not p],
    }
