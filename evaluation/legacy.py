"""Repeats the scoring of an earlier public baseline, for comparison only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms

from evaluation.candidate import CandidateResult
from evaluation.decisions import verdict
from evaluation.scores import composite_score

LEGACY_TOP = 10
# Fields of a candidate that the table beside our ranking shows, with its headings: "there" is the baseline.
LEGACY_COLUMNS = {
    "legacy_score_composite": "score there",
    "legacy_delta_g_ev": "ΔG_H there (eV)",
    "legacy_energy_ev_per_atom": "E there (eV/atom)",
    "legacy_score_stab": "stability there",
    "p_synth": "P_synth",
}


def legacy_stability_score(energy_per_atom: float) -> float:
    """Return max(0, 1 − exp(e + 0.5)), the stability score of the earlier public baseline; NaN where e is NaN.

    The baseline called e the formation energy, but used the TOTAL energy per atom. Total energies of solids are −2 to −13 eV/atom,
    so the score is near 1 for every crystal and says nothing about stability.

    Args:
        energy_per_atom: e in eV/atom.
    """
    return max(0.0, 1.0 - math.exp(min(energy_per_atom + 0.5, 1.0))) if not math.isnan(energy_per_atom) else math.nan


def score(row: CandidateResult, given: Atoms, her: Any, potential: Any, her_correction_ev: float) -> None:
    """Set the ``legacy_*`` fields of a row: the scores that the earlier public baseline would give to the structure as it is.

    Args:
        row: its ``p_synth`` enters the composite score.
        given: the structure before relaxation.
        her: offers ``legacy_bare_output`` (eV), DimeNet++'s output without hydrogen, which the baseline took for ΔE_H.
        potential: offers ``legacy_energy`` (eV/atom), the total energy after a relaxation of the positions.
        her_correction_ev: added to ΔE_H.
    """
    row.legacy_delta_g_ev = float(her.legacy_bare_output(given)) + her_correction_ev
    row.legacy_energy_ev_per_atom = float(potential.legacy_energy(given))
    row.legacy_score_stab = legacy_stability_score(row.legacy_energy_ev_per_atom)
    row.legacy_score_composite = composite_score(row.legacy_delta_g_ev, row.legacy_score_stab, row.p_synth)


def legacy_ranking(rows: Sequence[Any], settings: Any, top: int = LEGACY_TOP) -> dict[str, Any] | None:
    """Rank the same files by the earlier public baseline's score and by ours, and say how its favourites do here.

    Ranks count from 1 over all files, by score, then by id.

    Args:
        rows: ``CandidateResult`` of all files.
        settings: those of the evaluation.
        top: number of favourites.

    Returns:
        None where no row has a score of the baseline, otherwise

        - ``n``: rows with its score; ``n_both``: rows with our composite score too;
        - ``spearman``: rank correlation of both scores over ``n_both`` rows;
        - ``overlap``: how many of its ``of`` favourites are among our first ``top``;
        - ``max_steps``: its limit on relaxation steps;
        - ``verdicts``: ``verdict`` -> number of favourites that have it here;
        - ``rows``: the favourites with both ranks; ours is None where we give no score.
    """
    from scipy.stats import spearmanr

    def ranked(name: str) -> list[Any]:
        scored = [row for row in rows if not math.isnan(getattr(row, name))]
        return sorted(scored, key=lambda row: (-getattr(row, name), row.id))

    theirs, ours = ranked("legacy_score_composite"), ranked("score_composite")
    if not theirs:
        return None
    our_rank = {row.id: k for k, row in enumerate(ours, 1)}
    both = [row for row in theirs if row.id in our_rank]
    pairs = np.array([(row.legacy_score_composite, row.score_composite) for row in both]).reshape(-1, 2)
    varied = len(both) >= 3 and bool((np.ptp(pairs, axis=0) > 0).all())
    first = theirs[:top]
    verdicts = [verdict(row, settings) for row in first]
    return {
        "n": len(theirs),
        "n_both": len(both),
        "spearman": float(spearmanr(*pairs.T).statistic) if varied else math.nan,
        "overlap": len({row.id for row in first} & {row.id for row in ours[:top]}),
        "of": len(first),
        "max_steps": settings.legacy_max_steps,
        "verdicts": {name: verdicts.count(name) for name in dict.fromkeys(verdicts)},
        "rows": [
            {"rank": k, "our_rank": our_rank.get(row.id), "id": row.id, "formula": row.reduced_formula, "verdict": text}
            | {name: getattr(row, name) for name in ("score_composite", *LEGACY_COLUMNS)}
            for k, (row, text) in enumerate(zip(first, verdicts, strict=True), 1)
        ],
    }
