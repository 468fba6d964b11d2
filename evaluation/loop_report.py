"""What DFT said of the sheets of a round: hits of the chosen ones and of the controls, and the judge's error before it learnt.

A sheet's ΔG_H by DFT is that of its lowest site. It is a DFT hit where |ΔG_H| is within the window; ``hit`` asks for E_above_hull
by the judges too. A sheet on which the potential keeps H at no site is no hit. One whose calculations failed has no verdict and
is left out, with its number beside the rate. The judge's ΔG_H is that of its own site and coverage
(``dataset.h_image_distance_angstrom``), as it is used; DFT's is in a smaller cell (``dft_inputs.IMAGE_DISTANCE``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from energetics.adsorption_energy import free_energy
from energetics.dft_points import UNBOUND_EV, TruthPoint
from evaluation.batch_choice import Pick
from evaluation.decisions import all_of
from evaluation.statistics import rate_ratio_interval, wilson_interval
from pipeline.settings import EvaluationConfig

CHOSEN, NEIGHBOUR, UNGUIDED, RANDOM = "chosen", "chosen neighbour", "unguided", "random decoration"
RANDOM_NEIGHBOUR = "random neighbour"  # drawn at random among those that were not chosen
ALL_CHOSEN = "all chosen"
# The first two were chosen by one rule: sheets of the generator, and neighbours.
SETS = (CHOSEN, NEIGHBOUR, RANDOM_NEIGHBOUR, UNGUIDED, RANDOM)
COMPUTED, NO_SITE, FAILED = "computed", "no site", "failed"
NEAR_ZERO_EV = 0.5  # |ΔG_H| by DFT below which errors of the judge decide who is a hit


@dataclass(frozen=True)
class Choice:
    """A sheet that DFT was asked for, with what the judges said before.

    name: in the database of points. drawn_as: one of SETS. source: its CIF. family: stoichiometry
    and layer group. reason: why it was taken. Energies in eV, E_above_hull in eV/atom, NaN where a judge gave none. dft_atoms: of
    the cell with H.
    """

    name: str
    drawn_as: str
    source: str
    formula: str
    family: str
    reason: str
    delta_g_ev: float
    delta_g_std_ev: float
    delta_g_source: str
    e_above_hull_ev: float
    p_hit: float
    dft_atoms: int

    @classmethod
    def of(cls, drawn_as: str, pick: Pick) -> Choice:
        """Return the record of a pick, whose row is named as in the database of points."""
        row = pick.row
        judged = (row.delta_g_ev, row.delta_g_std_ev, row.delta_g_source, row.e_above_hull_ev, row.p_hit)
        return cls(row.id, drawn_as, row.source_file, row.reduced_formula, pick.family, pick.reason, *judged, pick.dft_atoms)


@dataclass(frozen=True)
class Outcome:
    """What DFT said of a sheet. delta_g_dft_ev: eV, NaN without a value. site: the lowest. status: computed, no site or failed."""

    choice: Choice
    status: str
    delta_g_dft_ev: float = math.nan
    site: str = ""
    hit_dft: bool | None = None
    hit: bool | None = None

    @property
    def error_ev(self) -> float:
        """Return the judge's ΔG_H minus that of DFT; NaN where one is missing or DFT does not bind H at all."""
        return self.choice.delta_g_ev - self.delta_g_dft_ev if self.is_bound else math.nan

    @property
    def is_bound(self) -> bool:
        """Return whether DFT binds H at the geometry, so that its value says something about adsorption."""
        return self.status == COMPUTED and self.site != ""


def outcomes_of(
    choices: Sequence[Choice],
    points: Iterable[TruthPoint],
    prepared: Mapping[str, int | None],
    settings: EvaluationConfig,
    her_correction_ev: float,
) -> list[Outcome]:
    """Return what DFT said of every choice.

    Args:
        choices: sheets that DFT was asked for.
        points: of the round, unbound ones included.
        prepared: name -> number of sites at which the potential keeps H; None where it could not be asked.
        settings: the limits of a hit.
        her_correction_ev: ΔG_H − ΔE_H.
    """
    lowest: dict[str, TruthPoint] = {}
    for point in points:
        if point.name not in lowest or point.delta_e < lowest[point.name].delta_e:
            lowest[point.name] = point
    found = []
    for choice in choices:
        point = lowest.get(choice.name)
        if point is None:
            no_site = prepared.get(choice.name) == 0
            found.append(Outcome(choice, NO_SITE, hit_dft=False, hit=False) if no_site else Outcome(choice, FAILED))
            continue
        delta_g = free_energy(point.delta_e, her_correction_ev)
        hit_dft = abs(delta_g) <= settings.hit_delta_g_ev
        e_hull = choice.e_above_hull_ev
        stable = None if math.isnan(e_hull) else e_hull <= settings.hit_e_hull_ev
        site = point.site if point.delta_e <= UNBOUND_EV else ""
        found.append(Outcome(choice, COMPUTED, delta_g, site, hit_dft, all_of(hit_dft, stable)))
    return found


def rate(verdicts: Iterable[bool | None]) -> dict[str, Any]:
    """Return hits, number with a verdict, their share and its 95 % Wilson interval."""
    known = [verdict for verdict in verdicts if verdict is not None]
    low, high = wilson_interval(sum(known), len(known))
    return {"hits": sum(known), "n": len(known), "rate": sum(known) / len(known) if known else math.nan, "low": low, "high": high}


def judge_error(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return how far the judge was from DFT before it learnt from the round.

    Returns:
        n; ``mae_ev`` and ``bias_ev`` (judge − DFT); ``within_1_sigma``, the share within the judge's own standard error;
        ``mae_near_zero_ev`` of the ``n_near_zero`` sheets with |ΔG_H| by DFT below NEAR_ZERO_EV.
    """
    known = [o for o in outcomes if math.isfinite(o.error_ev)]
    errors = np.array([o.error_ev for o in known])
    sigma = np.array([o.choice.delta_g_std_ev for o in known])
    near = np.array([abs(o.delta_g_dft_ev) < NEAR_ZERO_EV for o in known], dtype=bool)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    return {
        "n": len(known),
        "mae_ev": mean(np.abs(errors)),
        "bias_ev": mean(errors),
        "within_1_sigma": mean((np.abs(errors) <= sigma)[np.isfinite(sigma)]),
        "n_near_zero": int(near.sum()),
        "mae_near_zero_ev": mean(np.abs(errors[near])),
    }


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the numbers of every set that was asked for, and the judge's error over all of them."""
    sets = {}
    for drawn_as in SETS:
        own = [o for o in outcomes if o.choice.drawn_as == drawn_as]
        if own:
            sets[drawn_as] = {
                "asked": len(own),
                **{status.replace(" ", "_"): sum(o.status == status for o in own) for status in (COMPUTED, NO_SITE, FAILED)},
                "unbound": sum(o.status == COMPUTED and not o.is_bound for o in own),
                "hit_dft": rate(o.hit_dft for o in own),
                "hit": rate(o.hit for o in own),
                "judge": judge_error(own),
            }
    return {"sets": sets, "judge": judge_error(outcomes)}


def total(rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers of several rounds together, as ``summary`` has them; errors are means over all their sheets."""
    rounds = list(rounds)
    sets = {}
    for drawn_as in SETS:
        own = [found["sets"][drawn_as] for found in rounds if drawn_as in found["sets"]]
        if own:
            counts = {name: sum(numbers[name] for numbers in own) for name in ("asked", "computed", "no_site", "failed", "unbound")}
            names = [name for name in ("hit_dft", "hit", "hit_single") if name in own[0]]
            rates = {name: _joined_rate([numbers[name] for numbers in own]) for name in names}
            sets[drawn_as] = counts | rates | {"judge": _joined_error([numbers["judge"] for numbers in own])}
    return {"sets": sets, "judge": _joined_error([found["judge"] for found in rounds]), "ratios": _ratios(sets)}


def _ratios(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by how much the hit rate of each chosen set, and of both together, exceeds that of all controls together.

    Random neighbours are no controls here: their parents are sheets that DFT has found near zero.

    Returns:
        Set -> hits, number and ``rate`` of it, hits and number of controls, ``ratio`` (None where no control is a hit), and its
        95 % interval ``low``, ``high``.
    """
    controls = _joined_rate([sets[name]["hit"] for name in (UNGUIDED, RANDOM) if name in sets])
    chosen = {name: sets[name]["hit"] for name in (CHOSEN, NEIGHBOUR) if name in sets}
    if len(chosen) > 1:
        chosen[ALL_CHOSEN] = _joined_rate(list(chosen.values()))
    found = {}
    for name, own in chosen.items():
        low, high = rate_ratio_interval(own["hits"], own["n"], controls["hits"], controls["n"])
        ratio = own["rate"] / controls["rate"] if controls["hits"] else None
        counts = {"hits": own["hits"], "n": own["n"], "control_hits": controls["hits"], "controls": controls["n"]}
        found[name] = counts | {"rate": own["rate"], "ratio": ratio, "low": low, "high": high}
    return found


def with_hits(
    numbers: Mapping[str, Any], sheets: Sequence[Mapping[str, Any]], is_hit: Callable[[Mapping[str, Any]], bool | None]
) -> dict[str, Any]:
    """Return the numbers of a round with hits counted anew; those by single points stay as ``hit_single``.

    Args:
        numbers: ``summary`` of the round.
        sheets: its outcomes, as ``outcome_dicts`` returns them.
        is_hit: whether a sheet is a hit; None where that is not known.
    """
    sets = {}
    for drawn_as, found in numbers["sets"].items():
        anew = rate(is_hit(sheet) for sheet in sheets if sheet["drawn_as"] == drawn_as)
        sets[drawn_as] = {**found, "hit": anew, "hit_single": found["hit"]}
    return {**numbers, "sets": sets}


def _joined_rate(rates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    hits, n = (sum(found[name] for found in rates) for name in ("hits", "n"))
    return rate([True] * hits + [False] * (n - hits))


def _joined_error(errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the errors of several sets together: means weighted by the number of sheets."""
    weights = {"mae_ev": "n", "bias_ev": "n", "within_1_sigma": "n", "mae_near_zero_ev": "n_near_zero"}
    joined: dict[str, Any] = {name: sum(error[name] for error in errors) for name in ("n", "n_near_zero")}
    for name, weight in weights.items():
        known = [(error[name], error[weight]) for error in errors if error[weight] and error[name] is not None]
        joined[name] = sum(value * n for value, n in known) / sum(n for _, n in known) if known else math.nan
    return joined


def outcome_dicts(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Return outcomes as JSON holds them: the choice with what DFT said."""
    names = ("status", "delta_g_dft_ev", "site", "hit_dft", "hit")
    return [dataclasses.asdict(o.choice) | {name: getattr(o, name) for name in names} for o in outcomes]


def choices_table(choices: Sequence[Choice]) -> str:
    """Return the log of choices as text, one line each."""
    rows = [("name", "formula", "family", "atoms", "ΔG_H (eV)", "E_hull", "p_hit", "why")]
    for c in choices:
        value = f"{_number(c.delta_g_ev, '+z.2f')} ± {_number(c.delta_g_std_ev)}"
        why = c.reason if c.drawn_as in (CHOSEN, NEIGHBOUR) else f"{c.drawn_as}: {c.reason}"
        rows.append(
            (c.name, c.formula, c.family, str(c.dft_atoms), value, _number(c.e_above_hull_ev), _number(c.p_hit, ".3f"), why)
        )
    return as_table(rows)


def rounds_table(rounds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line for every set of every round.

    rounds: name of the round -> its ``summary``.
    """
    heads = (
        "round",
        "set",
        "computed",
        "|ΔG_H| in window",
        "hits",
        "judge's MAE (eV)",
        "bias (eV)",
        "within 1σ",
        "MAE near 0 (eV)",
    )
    rows = [heads]
    for name, found in rounds.items():
        for drawn_as, numbers in found["sets"].items():
            error = numbers["judge"]
            values = (_number(error["mae_ev"]), _number(error["bias_ev"], "+z.2f"), _number(error["within_1_sigma"], ".0%"))
            near = f"{_number(error['mae_near_zero_ev'])} (n {error['n_near_zero']})"
            done = f"{numbers['computed']}/{numbers['asked']}"
            rows.append((name, drawn_as, done, rate_text(numbers["hit_dft"]), rate_text(numbers["hit"]), *values, near))
    return as_table(rows)


def rate_text(found: Mapping[str, Any]) -> str:
    """Return a text such as "3/12: 25 % [9, 53]"."""
    if not found["n"]:
        return "–"
    return f"{found['hits']}/{found['n']}: {100 * found['rate']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of texts as aligned columns."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
