"""Fills the numbers of README.md and docs/ from the committed result files.

    python -m scripts.document_numbers            rewrites the texts
    python -m scripts.document_numbers --check    changes nothing; exit code 1 where a text differs from the files

A text marks a number, in a line or as a table, with two comments, between which this script writes:

    <!-- numbers: weights/dimenet.json; counts/train -->2,004<!-- end -->
    <!-- numbers: data/demo_c2db.json; metrics/share_ehull_above_0.2; .1% -->19.5 %<!-- end -->
    <!-- numbers: comparison --> a table of this script, by its name <!-- end -->

The first form names a file, the key (with / between the levels) and, if wanted, a format of Python. Needs nothing but the standard
library.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline import batch_table, design_table, generator_tables, judge_table, potential_table
from pipeline.number_texts import MISSING, Metric, database_counts, formatted, interval, metric_table, table

PROJECT_DIR = Path(__file__).resolve().parent.parent
MARK = re.compile(r"<!-- numbers: (?P<name>.+?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)
TRIPLE = ("value", "low", "high")  # what a list of three numbers holds


class NumbersError(ValueError):
    """A mark that names no file, no key or no table."""


def documents() -> list[Path]:
    """Return the texts that may hold marks."""
    return [PROJECT_DIR / "README.md", *sorted((PROJECT_DIR / "docs").glob("*.md"))]


@lru_cache(maxsize=32)
def load(name: str) -> Any:
    """Read a committed file: JSON, JSON in gzip, CSV as a list of rows, or an ASE database, of which counts are returned.

    Args:
        name: path below the project.

    Raises:
        NumbersError: there is no such file.
    """
    path = PROJECT_DIR / name
    if not path.is_file():
        raise NumbersError(f"no file {name}")
    if path.suffix == ".db":
        return database_counts(path)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return json.loads(text)


def value_at(content: Any, key: str) -> Any:
    """Return the value under a key with / between the levels; the length, where the value is a list or an object."""
    for part in key.split("/"):
        if not isinstance(content, dict) or part not in content:
            raise NumbersError(f"no key {part} of {key}")
        content = content[part]
    return len(content) if isinstance(content, list | dict) else content


HULLS = ("sevennet-l3i5", "sevennet-0")  # potentials with a hull of their own, that of the committed run first
NEAR_DFT_EV = 0.3  # of known sheets
NO_SHEET = "no sheet"  # name of the metric that this script adds
COMPARISON = (
    ("no sheet (bulk, chain, molecule)", NO_SHEET, ".0%"),
    ("valid", "rate_valid", ".0%"),
    ("relaxation converges", "rate_converged", ".0%"),
    ("median RMSD to relaxed (Å)", "median_rmsd_angstrom", ".2f"),
    ("E_hull ≤ 0.1 eV/atom", "rate_metastable", ".0%"),
    ("Score_stab", "score_stab", ".2f"),
    ("E_hull ≤ 0.1 eV/atom and dynamically stable", "rate_metastable_dynamic", ".0%"),
    ("not dissolved by water", "rate_not_dissolved", ".0%"),
    ("metastable S.U.N.", "rate_metastable_sun", ".0%"),
    ("mean abs. ΔG_H, best judge (eV)", "mae_delta_g_ev", ".2f"),
    ("mean abs. ΔG_H, DimeNet++ (eV)", "mae_delta_g_dimenet_ev", ".2f"),
    ("mean abs. ΔG_H, potential (eV)", "mae_delta_g_potential_ev", ".2f"),
    ("mean abs. ΔG_H, corrected potential (eV)", "mae_delta_g_corrected_ev", ".2f"),
    ("hit rate, best judge", "hit_rate", ".0%"),
    ("hit rate to expect (mean p_hit)", "expected_hit_rate", ".0%"),
    ("hit rate, DimeNet++", "hit_rate_dimenet", ".0%"),
    ("hit rate, potential", "hit_rate_potential", ".0%"),
    ("hit rate, corrected potential", "hit_rate_corrected", ".0%"),
    ("Rate_synth", "rate_synth", ".0%"),
    ("composite score", "score_composite", ".2f"),
)
SHORT = (NO_SHEET, *"rate_valid rate_metastable rate_metastable_sun mae_delta_g_ev hit_rate expected_hit_rate rate_synth".split())
ORDER = ("ours", "known", "unguided", "random decoration")
FOLDERS = {"ours": "results", **{name: f"results/controls/{name.replace(' ', '_')}" for name in ORDER[1:]}}


def run_sets() -> dict[str, Mapping[str, Metric]]:
    """Return the metrics of our set, its controls and the external set, unless that is one of the controls."""
    report, external = load("results/report.json"), load("results_external/report.json")
    own = {"ours": report["metrics"], **{name: control["metrics"] for name, control in report["controls"].items()}}
    sets = {name: {**own[name], NO_SHEET: no_sheet(FOLDERS[name])} for name in ORDER if own.get(name)}
    if external["metrics"] not in own.values():
        sets[external["label"]] = external_metrics(external)
    return sets


def no_sheet(folder: str) -> Metric:
    """Return the share of the structures of a judged set that are no sheet."""
    rows = load(f"{folder}/metrics.csv")
    return share(sum(not row["dimensionality"].startswith("2D") for row in rows), len(rows))


def share(count: int, n: int) -> Metric:
    """Return a share of n with its 95 % Wilson interval."""
    z2 = 1.959964**2
    centre, spread = (count + z2 / 2) / (n + z2), math.sqrt(z2 * (count * (n - count) / n + z2 / 4)) / (n + z2)
    return {"value": count / n, "low": max(0.0, centre - spread), "high": min(1.0, centre + spread), "n_ok": n, "n": n}


def external_metrics(report: Mapping[str, Any]) -> dict[str, Metric]:
    """Return the metrics of the external set; without any sheet, 0 of all as shares of valid ones and hits, and bulk metrics."""
    missing = no_sheet("results_external")
    metrics = {**report["metrics"], NO_SHEET: missing}
    if missing["value"] < 1:
        return metrics
    for name, metric in report["metrics"].items():
        is_verdict = name.startswith(("hit_rate", "rate_valid", "rate_metastable_sun"))
        metrics[name] = share(0, missing["n"]) if is_verdict else {**metric, "value": None}
    return metrics | {name: {**metric, "remark": "as bulk"} for name, metric in report["bulk"]["metrics"].items()}


def comparison() -> str:
    """Return the table of the committed run, the external set included."""
    return metric_table(COMPARISON, run_sets())


def short_comparison() -> str:
    """Return the rows of the committed run that the README shows."""
    return metric_table([row for row in COMPARISON if row[1] in SHORT], run_sets())


def sampled() -> str:
    """Return what sampling gave before the choice."""
    found = {"guided": "results/generated_cifs", "unguided": "results/controls/unguided_cifs"}
    counts = {name: load(f"{folder}/manifest.json")["counts"] for name, folder in found.items()}
    return table(["", *counts], [[key, *(formatted(c.get(key, 0)) for c in counts.values())] for key in ("sampled", "valid")])


GUIDANCE = (
    ("valid as sampled", "sampled_valid", ".0%"),
    ("relaxation converges", "rate_converged", ".0%"),
    ("charge-neutral possible", "rate_charge_neutral", ".0%"),
    ("median RMSD to relaxed (Å)", "median_rmsd_angstrom", ".2f"),
    ("E_hull ≤ 0.1 eV/atom", "rate_metastable", ".0%"),
    ("metastable S.U.N.", "rate_metastable_sun", ".0%"),
    ("unique", "rate_unique", ".0%"),
    ("novel", "rate_novel", ".0%"),
    ("mean abs. ΔG_H, second DimeNet++ (eV)", "mae_delta_g_dimenet_ev", ".2f"),
    ("mean abs. ΔG_H, potential (eV)", "mae_delta_g_potential_ev", ".2f"),
    ("mean abs. ΔG_H, corrected potential (eV)", "mae_delta_g_corrected_ev", ".2f"),
    ("hits, second DimeNet++", "hit_rate_dimenet", ".1%"),
    ("hits, potential", "hit_rate_potential", ".1%"),
    ("hits, corrected potential", "hit_rate_corrected", ".1%"),
)


def setting_name(setting: Mapping[str, Any]) -> str:
    """Return the strengths of guidance of one set, η of the gradient and w of the classifier-free one."""
    strengths = {"η": setting["guidance_scale"], "w": setting["cfg_scale"]}
    parts = [f"{symbol} {value:g}" for symbol, value in strengths.items() if value]
    return ", ".join(parts) or "no guidance"


def guidance() -> str:
    """Return guidance setting by setting, and the large set at the default."""
    sets = {f"{setting_name(d)} ({d['aggregates']['rate_valid']['n']})": d["aggregates"] for d in load_settings()}
    large = load("results/benchmark/generation.json")
    sets[f"{setting_name(large['generation'])} ({formatted(large['aggregates']['rate_valid']['n'])})"] = large["aggregates"]
    return metric_table(GUIDANCE, sets)


def load_settings() -> list[dict[str, Any]]:
    """Return the sets of the benchmark of guidance."""
    return load("results/benchmark/guidance.json")["doses"]


def hits() -> str:
    """Return the hits of each strength of guidance as counts."""
    settings = load_settings()
    body = []
    for label, key, _ in GUIDANCE[-3:]:
        found = [d["aggregates"][key] for d in settings]
        body.append([label, *(f"{round(m['value'] * m['n'])} of {m['n']}" for m in found)])
    return table(["", *(setting_name(d) for d in settings)], body)


def sampled_large() -> str:
    """Return which share of the sheets sampled for the large set passes the checks before anything is written."""
    large = load("results/benchmark/generation.json")
    bad = large["sampled_clash"] + large["sampled_disconnected"]
    rows = [
        ("sheets sampled", formatted(large["sampled"])),
        ("without a clash", formatted(1 - large["sampled_clash"] / large["sampled"], ".1%")),
        ("without a clash and one connected sheet", formatted(1 - bad / large["sampled"], ".1%")),
        ("distinct formulas in the set", formatted(large["formulas"])),
    ]
    return table(["", "value"], rows)


def her_judges() -> str:
    """Return how the judges of ΔE_H agree with values that they had not seen."""
    return judge_table.judges(load("results/report.json")["truth"], load("weights/dimenet.json")["metrics"]["test"])


def heads() -> str:
    """Return the errors of the denoiser's property heads on held-out formulas."""
    test = load("weights/denoiser.json")["metrics"]["test"]
    body = []
    for label, key, style in (("ΔG_H (eV)", "delta_g", ".2f"), ("E_hull (eV/atom)", "e_hull", ".3f")):
        unit = "_ev"
        errors = (formatted(test[f"{name}_{key}{unit}"], style) for name in ("mae", "baseline_mae"))
        body.append([label, formatted(test[f"n_{key}"]), *errors, formatted(test[f"spearman_{key}"]), MISSING])
    body.append(["P_synth", formatted(test["n_synth"]), MISSING, MISSING, MISSING, formatted(test["auc_synth"], ".3f")])
    return table(["head", "rows", "MAE", "MAE of the training mean", "Spearman", "ROC-AUC"], body)


def known_sheets() -> str:
    """Return what the judges say of the sheets that every chemist knows."""
    with (PROJECT_DIR / "results/controls/known/metrics.csv").open(newline="", encoding="utf-8") as handle:
        layers = {row["id"]: row["exfoliation_mev_per_a2"] for row in csv.DictReader(handle)}
    body = []
    for row in load("results/report.json")["known"]:
        error = "" if row["delta_g_std_ev"] is None else f" ± {row['delta_g_std_ev']:.2f}"
        body.append([row["name"], formatted(row["e_above_hull_ev"], ".2f"), formatted(row["delta_g_ev"], ".2f") + error])
        body[-1] += [formatted(row[key], ".2f") for key in ("delta_g_dft_ev", "band_gap_ev", "p_synth")]
        body[-1].append(formatted(float(layers[row["name"]]), ".0f") if layers[row["name"]] else MISSING)
    known = [row for row in load("results/report.json")["known"] if row["delta_g_dft_ev"] is not None]
    near = sum(abs(row["delta_g_ev"] - row["delta_g_dft_ev"]) <= NEAR_DFT_EV for row in known)
    within = f"{near} of {len(known)}: {interval(share(near, len(known)), '.0%')}"
    body.append([f"within {NEAR_DFT_EV:g} eV of DFT", MISSING, within, *[MISSING] * 4])
    head = ["sheet", "E_hull (eV/atom)", "ΔG_H (eV)", "ΔG_H, DFT (eV)", "gap (eV)", "P_synth", "E_exf (meV/Å²)"]
    return table(head, body)


def synthesizability() -> str:
    """Return how the embedded synthesizability model does on held-out formulas, beside trees on the composition alone."""
    metrics = load("weights/synth_lm.json")["metrics"]
    body = []
    for label, key in (("cross-validation on formulas", "cross-validation"), ("test formulas", "test")):
        for model, found in (("composition and bonds", metrics[key]), ("composition alone", metrics["composition alone"][key])):
            shares = [
                f"{found[name]:{style}} [{', '.join(format(value, style) for value in found[name + '_interval'])}]"
                for name, style in (("roc_auc", ".3f"), ("recall_reported", ".0%"), ("tnr", ".0%"))
            ]
            body.append([label, model, formatted(found["n"]), formatted(found["n_reported"]), *shares])
    return table(["held out", "model", "sheets", "synthesis on record", "ROC-AUC", "recall of these", "specificity"], body)


def synthesizability_by_family() -> str:
    """Return how many sheets whose synthesis is on record are recalled, by family, each by trees without its formula."""
    families = load("weights/synth_lm.json")["metrics"]["families"]
    shares = {}
    for name, f in families.items():
        shares[name] = f"{f['recalled'] / f['n']:.0%} [{f['interval'][0]:.0%}, {f['interval'][1]:.0%}]"
    body = [[name, formatted(f["n"]), formatted(f["recalled"]), shares[name]] for name, f in families.items()]
    return table(["family", "synthesis on record", "P_synth ≥ 0.5", "share"], body)


def labels() -> str:
    """Return how many labels of ΔG_H are near zero, by the way in which their sheets were chosen."""
    found = load("weights/denoiser.json")["labels"]
    body = []
    for name, group in found.items():
        if isinstance(group, dict) and "within_0.1_ev_of_zero" in group:
            sheets = group.get("with_delta_g_h", group["sheets"])
            body.append([name.replace("_", " "), formatted(sheets), formatted(group["within_0.1_ev_of_zero"])])
    return table(["chosen", "sheets with a label", "within 0.1 eV of zero"], body)


def structure_prediction() -> str:
    """Return the shares of held-out crystals that are found from their composition."""
    body = []
    trained = {
        "C2DB, shipped weights": "csp",
        "C2DB, shipped weights, free": "csp_free",
        "C2DB, shipped weights, free, refined": "csp_free_refined",
        "embedded data alone": "csp_embedded",
    }
    for name, file in trained.items():
        found = load(f"results/benchmark/{file}.json")
        for tolerance, part in (("StructureMatcher", found), ("normalised RMSD ≤ 0.1", found["within_0.1"])):
            cells = []
            for count in (1, 20):
                low, high = part[f"match@{count}_interval"]
                cells.append(interval({"value": part[f"match@{count}"], "low": low, "high": high}, ".0%"))
            errors = [formatted(part[f"mean_rmsd@{count}"]) for count in (1, 20)]
            body.append([name, tolerance, str(part["n"]), str(found["num_steps"]), *cells, *errors])
    return table(["trained on", "tolerance", "n", "steps", "match@1", "match@20", "RMSD@1", "RMSD@20"], body)


def hull_parity() -> str:
    """Return how E_above_hull agrees with the values of C2DB."""
    found = load("results/hull_parity.json")
    body = [
        ("rows, drawn at random", formatted(found["n_ok"])),
        ("MAE (eV/atom)", formatted(found["mae_ev"])),
        ("median error (eV/atom)", formatted(found["median_error_ev"])),
        ("Spearman", formatted(found["spearman"])),
        (f"same verdict at {found['limit_ev']:g} eV/atom", formatted(found["agree"], ".0%")),
        ("stable here alone", formatted(found["stable_ours_only"])),
        ("stable there alone", formatted(found["stable_theirs_only"])),
    ]
    return table(["E_above_hull against C2DB", "value"], body)


def learnt_hull() -> str:
    """Return how E_above_hull by each method agrees with C2DB on formulas that the learnt hull has not seen."""
    metrics = load(f"weights/hull_{HULLS[0]}.json")["metrics"]
    parts = {"generated": load("results/benchmark/hull.json")["hulls"]}
    parts["relaxed, at most 12 atoms"] = load("weights/hull_network.json")["metrics"]["test, relaxed"]
    parts |= {name: metrics[f"test, {name}"] for name in ("relaxed", "geometry of the database")}
    names = {"learnt": "learnt hull", "potential": f"{HULLS[0]} and its phases", "both": "mean of both"}
    names |= {"network": "networks", "combined": "both and networks"}
    wanted = (("mae_ev", ".3f"), ("spearman", ".2f"), ("agree", ".0%"))
    body = []
    for geometry, methods in parts.items():
        for method, row in methods.items():
            if "agree" in row:
                cells = [interval(dict(zip(TRIPLE, row[k], strict=True)), form) if row[k] else MISSING for k, form in wanted]
                body.append([geometry, names.get(method, method), str(row["n"]), *cells])
    return table(["sheet", "E_above_hull by", "n", "MAE (eV/atom)", "Spearman", "same verdict at 0.1 eV/atom"], body)


def water() -> str:
    """Return what water does to known sheets."""
    keys = ("e_above_hull_ev", "dg_pbx_ph0_ev", "dg_pbx_ph7_ev", "dg_pbx_ph14_ev", "water", "water_products", "remark")
    body = [[row["name"], *(formatted(row[key]) for key in keys)] for row in load("results/benchmark/water.json")["sheets"]]
    return table(["sheet", "E_hull", "ΔG_pbx pH 0", "pH 7", "pH 14", "verdict", "becomes", "what is known"], body)


def phonons() -> str:
    """Return how often verdicts of dynamic stability agree with C2DB's."""
    found = load("results/benchmark/phonons.json")["agreement"]
    body = [[n, *(interval(dict(zip(TRIPLE, v, strict=True)), ".0%") for v in pair.values())] for n, pair in found.items()]
    return table(["verdict by", "same as C2DB", "within 0.2 eV/atom"], body)


def kills() -> str:
    """Return what random kills of the stages left."""
    found = load("tests/faults/kill_anywhere.json")
    body = [[n.replace("_", "\\_"), str(s["kills"]), str(s["products_compared"]), s["verdict"]] for n, s in found.items()]
    return table(["stage", "kills", "products compared", "products at the end"], body)


def memory() -> str:
    """Return the memory over many candidates, every eighth row and the last."""
    rows = load("tests/faults/soak.json")["runs"][0]["rows"]
    body = [[formatted(r[k], ",.0f") for k in ("finished", "main_mib", "workers_mib")] for r in [*rows[:-1:8], rows[-1]]]
    return table(["candidates", "main process (MiB)", "workers, sum (MiB)"], body)


def growth() -> str:
    """Return seconds of the CPU and the largest memory by number of candidates."""
    found = load("results/benchmark/growth.json")["rows"]
    names = {"names": "ids", "store": "store of judged candidates, read", "uniqueness": "uniqueness", "metrics": "metrics"}
    names |= {"tables": "`metrics.csv`, `relaxed.extxyz`", "report": "report, page, figures"}
    cell = lambda row: f"{row['cpu_seconds']:,.1f} s, {row['peak_mib']:,} MiB" if row else MISSING  # noqa: E731
    body = [[label, *(cell(parts.get(name)) for parts in found.values())] for name, label in names.items()]
    return table(["candidates", *(f"{int(count):,}" for count in found)], body)


TABLES: dict[str, Callable[[], str]] = {
    "comparison": comparison,
    "short comparison": short_comparison,
    "sampled": sampled,
    "guidance": guidance,
    "hits": hits,
    "sampled large": sampled_large,
    "judges of the adsorption energy": her_judges,
    "heads": heads,
    "known sheets": known_sheets,
    "synthesizability": synthesizability,
    "synthesizability_by_family": synthesizability_by_family,
    "labels": labels,
    "structure prediction": structure_prediction,
    "ladder": lambda: generator_tables.ladder(load("results/benchmark/ladder.json")),
    "ladder pairs": lambda: generator_tables.ladder_pairs(load("results/benchmark/ladder.json")),
    "ladder subsets": lambda: generator_tables.ladder_subsets(load("results/benchmark/ladder.json")),
    "ladder relaxed": lambda: generator_tables.ladder_relaxed(load("results/benchmark/ladder_relaxed.json")),
    "ladder relaxed pairs": lambda: generator_tables.ladder_relaxed_pairs(load("results/benchmark/ladder_relaxed.json")),
    "diffusion trials": lambda: generator_tables.diffusion_trials(load("results/benchmark/diffusion.json")),
    "diffusion denoising": lambda: generator_tables.diffusion_denoising(load("results/benchmark/diffusion.json")),
    "ladder denoising": lambda: generator_tables.ladder_denoising(load("results/benchmark/ladder.json")),
    "element guidance": lambda: generator_tables.element_guidance(load("results/benchmark/elements.json")),
    "activity": lambda: generator_tables.activity(load("weights/activity.json")),
    "put first": lambda: generator_tables.put_first(load("weights/activity.json")),
    "distributions": lambda: generator_tables.distributions(load("results/benchmark/elements.json")),
    "searches": lambda: generator_tables.searches(load("results/benchmark/search.json")),
    "searches, any halides": lambda: generator_tables.searches(load("results/benchmark/search.json"), any_halides=True),
    "hull parity": hull_parity,
    "learnt hull": learnt_hull,
    "potentials hull": lambda: potential_table.hulls({name: load(f"weights/hull_{name}.json")["metrics"] for name in HULLS}),
    "water": water,
    "phonons": phonons,
    "kills": kills,
    "memory": memory,
    "growth": growth,
    "potentials": lambda: potential_table.potentials(load("results/benchmark/potentials.json")),
    "potentials paired": lambda: potential_table.paired(load("results/benchmark/potentials.json")),
    "phases": lambda: potential_table.phases(load("results/benchmark/potentials.json")),
    "processors": lambda: judge_table.runs_compared(load("results/benchmark/processors.json")),
    "published": lambda: potential_table.published(load("results/benchmark/potentials.json")),
    "origins": lambda: judge_table.origins(load("results/report.json")["truth"]),
    "defects": lambda: judge_table.defects(load("results/report.json")["truth"]),
    "designs": lambda: design_table.designs(load("results/designs/designs.json")),
    "design rounds": lambda: design_table.rounds(load("results/designs/designs.json")),
    "batches": lambda: batch_table.batches(load("results/benchmark/batches.json")),
    "relaxation": lambda: batch_table.relaxation(load("results/benchmark/relaxation.json")),
    "stages": lambda: batch_table.stages(load("results/benchmark/stages.json")),
    "messages": lambda: batch_table.messages(load("results/benchmark/messages.json")),
    "convolution": lambda: batch_table.convolution(load("results/benchmark/convolution.json")),
}


def text_of(name: str) -> str:
    """Return what belongs between the two comments of a mark.

    Raises:
        NumbersError: the mark names no table, file or key.
    """
    if name in TABLES:
        return f"\n{TABLES[name]()}\n"
    file, *rest = (part.strip() for part in name.split(";"))
    if not 1 <= len(rest) <= 2:
        raise NumbersError(f"{name} is no table of {Path(__file__).name}, and not FILE; KEY or FILE; KEY; FORMAT")
    return formatted(value_at(load(file), rest[0]), *rest[1:])


def filled(text: str) -> str:
    """Return a text with every mark filled anew."""
    return MARK.sub(lambda mark: f"<!-- numbers: {mark['name']} -->{text_of(mark['name'])}<!-- end -->", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the documents, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a text differs from the files")
    check = parser.parse_args(arguments).check
    stale = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        try:
            new = filled(text)
        except NumbersError as error:
            print(f"{path.relative_to(PROJECT_DIR)}: {error}", file=sys.stderr)
            return 2
        if new != text:
            stale.append(str(path.relative_to(PROJECT_DIR)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'differs from the result files' if check else 'filled anew'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
