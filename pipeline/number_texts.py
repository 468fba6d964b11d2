"""Writes numbers, shares with their intervals and tables as Markdown, and counts rows; needs nothing but the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

MISSING = "–"
Metric = Mapping[str, Any]  # value, low, high, n_ok, n


def formatted(value: Any, style: str = "") -> str:
    """Write a number; counts with commas and others with two decimals unless a format of Python says otherwise."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    text = format(value, style or ("," if isinstance(value, int) else ".2f"))
    return text.replace("%", " %")


def interval(metric: Metric, style: str) -> str:
    """Write a metric with its 95 % interval, and for a mean the number of candidates where not all have a value.

    A share is of all candidates, whether they have a value or not. A remark of the metric comes last.
    """
    if metric["value"] is None:
        return MISSING
    if metric.get("remark"):
        return f"{interval({**metric, 'remark': ''}, style)} {metric['remark']}"
    text = formatted(metric["value"], style)
    if metric.get("low") is not None:
        low, high = (formatted(metric[end], style).removesuffix(" %") for end in ("low", "high"))
        text += f" [{low}, {high}]"
    of_all = style.endswith("%") or metric.get("n_ok") in (None, metric.get("n"))
    return text if of_all else f"{text} (n {metric['n_ok']})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def metric_table(rows: Sequence[tuple[str, str, str]], sets: Mapping[str, Mapping[str, Metric]]) -> str:
    """Return a table of metrics: one row for each (label, key, format), one column for each set."""
    body = [[label, *(interval(found[key], style) for found in sets.values())] for label, key, style in rows]
    return table(["", *sets], body)


def database_counts(path: Path) -> dict[str, int]:
    """Return the numbers of clean sheets, of sheets with H, and of families in an ASE database of adsorption energies."""
    count = "select count(*) from text_key_values where key = 'kind' and value "
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        one = lambda query: database.execute(query).fetchone()[0]  # noqa: E731
        families = one("select count(distinct value) from text_key_values where key = 'family'")
        return {"sheets": one(count + "= 'clean'"), "adsorption energies": one(count + "!= 'clean'"), "families": families}
