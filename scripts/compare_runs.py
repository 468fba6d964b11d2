"""Compares the verdicts of two runs: of one machine with another, or of a run of today with the shipped one.

    make run
    python -m scripts.compare_runs results results/run

Every metrics.csv that both folders hold at the same place is compared, a candidate with that of the same id and formula: verdicts,
the ΔG_H that counts, E_hull, and whether the CIFs of ``generated_cifs`` are the same file, byte for byte. Ends with 1 where a
verdict differs or a candidate has no counterpart. ``--output FILE`` keeps what was found, with what ``--about`` says of the runs.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.files import relative_name, write_json
from pipeline.machine import machine
from pipeline.provenance import git_commit

if TYPE_CHECKING:  # takes half a second to import, and --help does not need it
    import pandas as pd

# What a row of metrics.csv is said to be.
VERDICTS = (
    "valid", "dynamically_stable", "exfoliable", "water", "conductive", "synthesizable", "unique", "novel", "sun",
    "metastable_sun", "hit",
)  # fmt: skip
SAME_EV = 0.01  # by which a ΔG_H may differ without being listed


def read_table(path: Path) -> pd.DataFrame:
    """Return a metrics.csv by id and formula of its candidates, every cell but the numbers compared as it is written.

    Raises:
        StageError: it is no such table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["id", "formula"])
        numbers = table[["delta_g_ev", "e_above_hull_ev", "p_hit"]].apply(pd.to_numeric)
        if not table.index.is_unique:
            raise ValueError(f"{table.index[table.index.duplicated()][0][0]} is there twice")
    except (KeyError, ValueError, OSError, pd.errors.ParserError) as error:
        raise StageError(f"{relative_name(path)} is no metrics.csv of this version: {error}") from error
    return table.assign(**numbers)


def compare_tables(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any]:
    """Return what differs between two tables of candidates: numbers of candidates, verdicts, and ΔG_H."""
    both = first.index.intersection(second.index)
    one, other = first.loc[both], second.loc[both]
    columns = [name for name in VERDICTS if name in one and name in other]
    differ = [
        {"id": row[0], "formula": row[1], "verdict": name, "first": one.at[row, name], "second": other.at[row, name]}
        for row in both
        for name in columns
        if one.at[row, name] != other.at[row, name]
    ]
    change = (one["delta_g_ev"] - other["delta_g_ev"]).abs()
    moved = change[(change > SAME_EV) | (one["delta_g_ev"].isna() != other["delta_g_ev"].isna())].index
    hull = (one["e_above_hull_ev"] - other["e_above_hull_ev"]).abs().max()
    return {
        "candidates": [len(first), len(second)],
        "in_both": len(both),
        "verdicts": len(both) * len(columns),
        "verdicts_that_differ": differ,
        "delta_g_that_differs": [
            {"id": row[0], "formula": row[1]}
            | {name: _number(table.at[row, "delta_g_ev"]) for name, table in (("first_ev", one), ("second_ev", other))}
            for row in moved
        ],
        "largest_e_hull_change_ev": _number(hull),
        "hits_to_expect": [float(table["p_hit"].sum()) for table in (first, second)],
    }


def compare_runs(first: Path, second: Path) -> dict[str, dict[str, Any]]:
    """Return what ``compare_tables`` finds in each table that both runs have, by its path in them.

    Raises:
        StageError: they have none, or one cannot be read.
    """
    names = sorted(str(path.relative_to(first)) for path in (first / "metrics.csv", *first.glob("controls/*/metrics.csv")))
    names = [name for name in names if (first / name).is_file() and (second / name).is_file()]
    if not names:
        raise StageError(f"{relative_name(first)} and {relative_name(second)} hold no metrics.csv at the same place")
    found = {name: compare_tables(read_table(first / name), read_table(second / name)) for name in names}
    cifs = [path.name for path in sorted((first / "generated_cifs").glob("*.cif"))]
    if cifs and (second / "generated_cifs").is_dir() and "metrics.csv" in found:
        same, _, _ = filecmp.cmpfiles(first / "generated_cifs", second / "generated_cifs", cifs, shallow=False)
        found["metrics.csv"]["same_files"] = len(same)
    return found


def read_kept(path: Path) -> dict[str, Any]:
    """Return the comparisons that a file holds already.

    Raises:
        StageError: it is no such file.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{relative_name(path)} is no JSON: {error}; name another --output") from error
    if not isinstance(kept, dict):
        raise StageError(f"{relative_name(path)} holds no comparisons: name another --output")
    return kept


def _number(value: Any) -> float | None:
    return None if value != value else float(value)


def _line(name: str, found: dict[str, Any]) -> str:
    """Return what was found of a table in a line."""
    files = f", {found['same_files']} of the same bytes" if "same_files" in found else ""
    return (
        f"{name}: {found['in_both']} candidates in both (of {' and '.join(map(str, found['candidates']))}){files}; "
        f"{len(found['verdicts_that_differ'])} of {found['verdicts']} verdicts "
        f"and {len(found['delta_g_that_differs'])} ΔG_H differ; "
        f"hits to expect {' and '.join(f'{value:.2f}' for value in found['hits_to_expect'])}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Compare, say what differs, and keep it where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a run, such as results")
    parser.add_argument("second", type=Path, help="folder of the other run, such as results/run")
    parser.add_argument("--output", type=Path, help="JSON file that gets what was found; keeps what others of its --about hold")
    parser.add_argument("--about", default="", help="what the two runs are, in a few words")
    chosen = parser.parse_args(arguments)
    try:
        found = compare_runs(chosen.first, chosen.second)
        if chosen.output:
            kept = read_kept(chosen.output) if chosen.output.exists() else {}
            about = {"machine": machine(), "commit": git_commit(), "tables": found}
            write_json(chosen.output, kept | {chosen.about or "two runs": about})
    except (StageError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for name, table in found.items():
        print(_line(name, table))
        for row in table["verdicts_that_differ"]:
            print(f"  {row['id']} {row['formula']}: {row['verdict']} {row['first'] or 'none'} and {row['second'] or 'none'}")
        for row in table["delta_g_that_differs"]:
            print(f"  {row['id']} {row['formula']}: ΔG_H {row['first_ev']} and {row['second_ev']} eV")
    return int(any(table["verdicts_that_differ"] or table["in_both"] < max(table["candidates"]) for table in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
