"""Writes what water does to sheets that every chemist knows, and how well the energies behind it agree with experiment.

Reads   evaluation.known_cif_dir, judged: metrics.csv of stage 5 (results/controls/known), evaluation.references_path.
Writes  results/benchmark/water.json, which docs/results.md shows.
Run     python -m scripts.water_table
"""

from __future__ import annotations

import csv
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from pipeline.cli import run_stage
from pipeline.files import PROJECT_DIR, atomic_path
from pipeline.settings import Config

if TYPE_CHECKING:
    from energetics.water import Water

KNOWN = PROJECT_DIR / "results" / "controls" / "known" / "metrics.csv"
TABLE = PROJECT_DIR / "results" / "benchmark" / "water.json"
# What chemistry says of each, in a line.
REMARKS = {
    "2H-MoS2": "lasts in acid, dissolves as molybdate in alkali",
    "2H-MoSe2": "lasts as MoS2 does",
    "2H-MoTe2": "lasts at cathodic potentials, oxidises in air",
    "2H-WS2": "lasts in acid, dissolves as tungstate in alkali",
    "2H-WSe2": "lasts in acid, dissolves as tungstate in alkali",
    "2H-NbS2": "driven to Nb2O5, whose skin slows it",
    "2H-NbSe2": "lasts in acid by a hair; oxidises in air",
    "2H-TaS2": "driven to Ta2O5, whose skin slows it",
    "2H-TaSe2": "driven to Ta2O5, whose skin slows it",
    "1T-TiS2": "hydrolyses in moist air to TiO2 and H2S",
    "1T-TiSe2": "oxidises to TiO2 in air and water",
    "1T-ZrS2": "hydrolyses to ZrO2",
    "1T-HfS2": "hydrolyses to HfO2",
    "1T-VSe2": "oxidises in air",
    "1T-SnS2": "is reduced to Sn at cathodic potentials",
    "1T-PtS2": "driven by H2 to the metal and H2S",
    "1T-PtSe2": "lasts in air and acid",
    "1T-PdTe2": "lasts, an HER catalyst in acid",
    "penta-PdSe2": "lasts in air",
    "graphene": "lasts",
    "h-BN": "should hydrolyse, but does so only when hot: kinetics protects it",
    "phosphorene": "degrades to phosphates in water and air",
    "GaSe": "oxidises to Ga2O3 in air",
    "FeSe": "gives H2Se in acid, lasts near pH 7 without oxygen",
    "Bi2Te3": "lasts, with a thin skin of oxide",
    "Mo2C": "a catalyst in acid; 0.7 eV/atom of this is the hull's",
    "Ti2CO2": "MXenes oxidise to TiO2 in water",
}
# Sheets and salts that water is known to dissolve or not, at the hull: they set the limits of the verdicts.
SALTS = {
    "NaCl": "soluble",
    "MgCl2": "soluble",
    "FeCl2": "soluble",
    "CrI3": "takes up water and dissolves",
    "CdI2": "soluble",
    "GeS": "driven to germanic acid, slowly",
    "TiO2": "lasts",
    "CaF2": "hardly soluble",
}
FIELDS = ("e_above_hull_ev", "dg_pbx_ph0_ev", "dg_pbx_ph7_ev", "dg_pbx_ph14_ev", "water", "water_products")


def rows_of(water: Water) -> list[dict[str, Any]]:
    """Return name, formula, FIELDS and remark of the known sheets as judged, then of SALTS with E_above_hull 0."""
    from evaluation.candidate import CandidateResult
    from evaluation.water_verdict import judge_water

    with KNOWN.open(newline="", encoding="utf-8") as handle:
        known = [(row["id"], row["reduced_formula"], row["e_above_hull_ev"]) for row in csv.DictReader(handle)]
    found = []
    for name, formula, e_above_hull in [*known, *((formula, formula, "0") for formula in SALTS)]:
        row = CandidateResult(id=name, formula=formula, reduced_formula=formula, e_above_hull_ev=float(e_above_hull or "nan"))
        judge_water(row, water)
        values = {key: value for key, value in dataclasses.asdict(row).items() if key in FIELDS}
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
        found.append({"name": name, "formula": formula, **rounded, "remark": REMARKS.get(name) or SALTS.get(name, "")})
    return sorted(found, key=lambda row: min(row[key] for key in FIELDS[1:4]))


def main(cfg: Config) -> None:
    """Write the table."""
    from energetics.water import scale_errors
    from evaluation.water_verdict import MARGIN_EV, load_water, reference_at_each_ph

    water = load_water(cfg.evaluation.references_path)
    errors = {group: {k: round(v, 4) for k, v in values.items()} for group, values in scale_errors(water).items()}
    content = {
        "scale": errors,
        "mos2_ev_at_each_ph": [round(value, 4) for value in reference_at_each_ph(water)],
        "margin_ev": MARGIN_EV,
        "sheets": rows_of(water),
    }
    with atomic_path(TABLE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "evaluation")))
