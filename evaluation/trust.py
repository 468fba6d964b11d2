"""Says how far each number of a report can be trusted, and what measurement shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.metrics import NEAR_ZERO_EV
from evaluation.summary import metric_text, plain_number

Row = tuple[str, str]  # number, evidence
OTHER = "chemistry_left_out"


def trust(report: Mapping[str, Any]) -> list[Row]:
    """Return (number, measured evidence) for every kind of number. report: the content of ``report.json``."""
    judges = report["provenance"]["judges"]
    delta_g = _delta_g_rows(report["truth"], report["metrics"])
    novelty = report["provenance"].get("novelty", {})
    return [*delta_g, *_stability_rows(judges, report.get("hull_parity")), *_set_rows(judges, novelty)]


def _delta_g_rows(truth: Mapping[str, Any], found: Mapping[str, Any]) -> list[Row]:
    """Return the evidence for ΔG_H by each judge: its errors against DFT."""
    if not truth.get("n"):
        return [("ΔG_H", "No DFT truth was at hand: the numbers are unverified.")]
    rows = [
        (
            "ΔG_H by DimeNet++",
            f"Against our DFT (PBE) values, {truth.get('source', '')}: {_errors(truth)}; "
            f"{truth.get('protocol', '')}. Without it: {_errors(truth.get('uncorrected', {}))}. Inside its training "
            f"domain: {metric_text(found['rate_her_in_domain'])}. ± is one calibrated standard error.",
        ),
        (
            "ΔG_H by the potential",
            f"{truth['potential'].get('name', '')} against the same values: {_errors(truth['potential'])}. Potentials bind H "
            "too strongly on inert basal planes; this is a second opinion that did not guide the generator.",
        ),
    ]
    if corrected := truth.get("potential_corrected"):
        without = f" By fits without all sites of its chemistry: {_errors(by_site)}." if (by_site := corrected.get(OTHER)) else ""
        rows.append(
            (
                "ΔG_H by the potential, corrected",
                f"ΔE_H from {corrected.get('name', '')}, by a fit to the same DFT values, each host predicted by a fit without "
                f"it: {_errors(corrected)}.{without}",
            )
        )
    if blind := truth.get("blind"):
        rows.append(
            (
                "ΔG_H, blind",
                f"{blind['n']} DFT values of {blind['source']} on sheets drawn at random, which nothing was fitted on: "
                f"DimeNet++ {_errors(blind)}; the potential {_errors(blind['potential'])}; corrected "
                f"{_errors(blind['potential_corrected'])}.",
            )
        )
    if table := truth.get("table"):
        listed = f"{len(table['rows'])} rows of {table['source']}, those with a structure"
        rows.append(("ΔE_H, table of truth", f"{listed}: {_errors(table)}."))
    return rows


def _errors(score: Mapping[str, Any]) -> str:
    """Write errors and rank correlation of ``metrics.agreement``, with the order of inert and active sheets where it is known."""
    mae, shift, rank = (plain_number(score.get(key)) for key in ("mae_ev", "mean_error_ev", "spearman"))
    text = f"MAE {mae} eV, mean error {shift} eV, Spearman {rank} (n = {score.get('n', 0)}){_coverage_text(score.get('coverage'))}"
    order = score.get("inert_above_active") or {}
    if pairs := order.get("pairs"):
        right = pairs - len(order["violations"])
        text += f"; an inert sheet comes out above an active one in {right} of {pairs} pairs"
    return text


def _coverage_text(coverage: Mapping[str, Any] | None) -> str:
    """Write how many DFT values lie within one and two standard errors (``metrics.coverage``)."""
    if not coverage or not coverage["n"]:
        return ""

    def shares(found: Mapping[str, Any]) -> str:
        return f"{found['within_1']:.0%} within 1σ, {found['within_2']:.0%} within 2σ"

    near = coverage["near_zero"]
    return f"; {shares(coverage)}" + (f" (|ΔG_H| < {NEAR_ZERO_EV:g} eV, n = {near['n']}: {shares(near)})" if near["n"] else "")


def _stability_rows(judges: Mapping[str, Any], hull: Mapping[str, Any] | None) -> list[Row]:
    """Return the evidence for formation energies, E_above_hull and P_synth."""
    potential = judges.get("potential", {}).get("name", "the potential")
    synth = judges.get("synthesizability", {})
    auc = synth.get("test_roc_auc")
    by = judges.get("hull", {}).get("name", "potential")
    own = f"{potential} against elements and competing phases of the same potential only"
    bound = "A phase that is not among the references cannot lower the hull: E_above_hull is a lower bound."
    averaged = {
        "both": ", averaged with the potential's",
        "combined": ", averaged with the potential's and with that of networks that learnt it from PBE too",
    }
    learnt = f"E_above_hull: learnt from PBE{averaged.get(by, '')}"
    learnt += " (E_form and hull energy corrected), never below 0; the potential's where a sheet is unlike the training sheets."
    return [
        ("E_form, E_above_hull", f"{own}. {bound} {_hull_text(hull)}")
        if by == "potential"
        else ("E_form, E_above_hull", f"E_form: {potential} against the elements. {learnt} {_hull_text(hull)}"),
        (
            "P_synth",
            f"{synth.get('name', '')}: probability of the label 'synthesizable'"
            + (f"; ROC-AUC {auc:.2f} on held-out formulas" if auc else "")
            + _laboratory_text(synth.get("laboratory"))
            + ". It ranks; it is no promise that a synthesis exists.",
        ),
    ]


def _laboratory_text(recall: Mapping[str, Any] | None) -> str:
    """Write what ``laboratory.laboratory_recall`` found."""
    if not recall:
        return ""
    missed = f", missed {', '.join(recall['missed'])}" if 0 < len(recall["missed"]) <= 10 else ""
    return (
        f"; it recalls {recall['recalled']} of {recall['n']} sheets made in a laboratory (data/laboratory_sheets.csv){missed}; of "
        f"the {recall['held_out_n']} whose formula it has not seen, {recall['held_out_recalled']}"
    )


def _hull_text(hull: Mapping[str, Any] | None) -> str:
    """Write what ``hull_parity`` found."""
    if not hull or not hull["n_ok"]:
        return "It was not compared with a DFT hull (evaluation.hull_db)."
    agrees = f"the verdict at {hull['limit_ev']:g} eV/atom agrees for {100 * hull['agree']:.0f} %"
    return (
        f"On {hull['n_ok']} of {hull['n']} monolayers drawn from {hull['source']}: MAE {plain_number(hull['mae_ev'])} eV/atom, "
        f"median error {plain_number(hull['median_error_ev'])} eV/atom, Spearman {plain_number(hull['spearman'])}; {agrees} "
        f"({hull['stable_ours_only']} stable only here, {hull['stable_theirs_only']} only there)."
    )


def _set_rows(judges: Mapping[str, Any], novelty: Mapping[str, int]) -> list[Row]:
    """Return the evidence for uniqueness, novelty, charge balance and intervals."""
    matcher = ", ".join(f"{key} {value}" for key, value in judges.get("structure_matcher", {}).items())
    known = " and from ".join(f"{count:,} {_kind_of(name)} {name}" for name, count in novelty.items())
    known = known or judges.get("training_set", {}).get("path", "the training database")
    return [
        ("unique, novel", f"StructureMatcher {matcher}; novel means absent from {known}, not from the literature."),
        ("charge-neutral possible", "SMACT with alloys of metals allowed: necessary, not sufficient."),
        (
            "intervals",
            "95 %, bootstrap over candidates (Wilson where all candidates agree): they carry the luck of the draw, not the error "
            "of the judges.",
        ),
    ]


def _kind_of(name: str) -> str:
    return "formulas of" if name.endswith(".pth") else "rows of"
