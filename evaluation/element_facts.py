"""Says what the elements of a candidate cost, how concentrated their supply is, and which of them are hazards.

None of it depends on the structure, and none of it is part of a hit. ``practical`` decides who may be a finalist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from evaluation.candidate import CandidateResult
from pipeline.settings import EvaluationConfig

SCARCE_HHI = 2500.0  # above it the reserves are concentrated in few countries (``supply_risk``)


def mark_elements(rows: Iterable[CandidateResult], settings: EvaluationConfig) -> None:
    """Set price, supply risk and hazards of every row with a formula."""
    for row in rows:
        if row.reduced_formula:
            row.price_usd_per_kg = price(row.reduced_formula)
            row.hhi_reserve = supply_risk(row.reduced_formula)
            row.hazards = ", ".join(sorted(row.elements() & set(settings.hazards)))


def is_practical(row: CandidateResult, settings: EvaluationConfig) -> bool:
    """Return whether a candidate may be a finalist: no hazards where they are left out, and not dearer than the limit.

    A price that is not known is no reason to refuse.
    """
    dear = settings.max_price_usd_per_kg and row.price_usd_per_kg > settings.max_price_usd_per_kg
    return not dear and not (row.hazards and settings.leave_out_hazards)


@cache
def price(formula: str) -> float:
    """Return the price of the elements of a formula in US dollars per kg, from pymatgen's table; NaN where it lacks one."""
    try:
        return float(_prices().get_cost_per_kg(formula))
    except (ValueError, KeyError):
        return math.nan


@cache
def supply_risk(formula: str) -> float:
    """Return the Herfindahl-Hirschman index of the known reserves of the elements, weighted by mass, from pymatgen's table.

    Below 1,500 reserves are spread over many countries, above 2,500 concentrated in few (Gaultois et al., Chem. Mater. 25, 2911
    (2013)).

    Returns:
        The index, at most 10,000; NaN where an element has none.
    """
    from pymatgen.analysis.hhi import HHIModel

    found = HHIModel().get_hhi_reserve(formula)
    return math.nan if found is None else float(found)


@cache
def _prices() -> Any:
    from pymatgen.analysis.cost import CostAnalyzer, CostDBElements

    return CostAnalyzer(CostDBElements())
