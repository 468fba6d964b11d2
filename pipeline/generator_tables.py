"""Writes the tables of ``scripts.benchmark_generator`` as Markdown; needs nothing but the standard library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.number_texts import MISSING, formatted, interval, table

LADDER = [(bound, count) for count in (1, 20) for bound in ("tight", "strict", "loose")]


def ladder(content: Mapping[str, Any]) -> str:
    """Return how often each method finds held-out crystals from their composition."""
    body = []
    for name, found in content["methods"].items():
        cells = []
        for bound, count in LADDER:
            low, high = found[bound].get(f"match@{count}_interval", (None, None))
            cells.append(interval({"value": found[bound].get(f"match@{count}"), "low": low, "high": high}, ".0%"))
        polymorph = formatted(found["any_polymorph_strict"]["match@1"], ".0%")
        body.append([name, formatted(found["n"]), *cells, polymorph, formatted(found["median_rmsd@1"], ".3f")])
    heads = [f"{bound} @{count}" for bound, count in LADDER]
    return table(["method", "n @1", *heads, "strict @1, any polymorph", "median RMSD @1"], body)


def ladder_pairs(content: Mapping[str, Any]) -> str:
    """Return in how many rows one method alone finds the crystal, and McNemar's exact p."""
    body = []
    for name, found in content["paired"].items():
        tests = [found.get(f"{bound}@{count}") for bound, count in LADDER]
        cells = [f"{m['first_alone']} : {m['second_alone']} (p {formatted(m['p'], '.1g')})" if m else MISSING for m in tests]
        body.append([name, *cells])
    heads = [f"{bound} @{count}" for bound, count in LADDER]
    return table(["first against second", *heads], body)


SUBSETS = {
    "near the hull": "within 0.1 eV/atom of the hull",
    "ground state": "the most stable of its composition",
    "both": "both",
}


def ladder_subsets(content: Mapping[str, Any]) -> str:
    """Return the strict matches of the trivial methods and of the shipped one on sheets that could exist."""
    body = []
    for key, words in SUBSETS.items():
        found, cells = content["subsets"][key], []
        for name in ("random crystal", "substitution", "ranked prototypes, refined"):
            for count in ("match@1", "match@k"):
                cells.append(_share(found["methods"][name][count]))
        test = found["paired"]
        pair = f"{test['first_alone']} : {test['second_alone']} (p {formatted(test['p'], '.1g')})"
        body.append([words, f"{found['n']}, {found['n_many']}", *cells, pair])
    heads = [f"{name} @{count}" for name in ("random", "substitution", "ranked, refined") for count in ("1", "20")]
    return table(["sheets of C2DB", "n @1, @20", *heads, "ranked, refined alone : substitution alone, @1"], body)


RELAXED = (
    ("as low as the sheet on record", "as_low", ".0%"),
    ("lower", "lower", ".0%"),
    ("energy above the lower of the two (eV/atom)", "above_ev", ".3f"),
    ("the sheet on record", "same", ".0%"),
    ("median RMSD to relaxed (Å)", "rmsd_angstrom", ".3f"),
)


def ladder_relaxed(content: Mapping[str, Any]) -> str:
    """Return what the first prediction of each method relaxes to, beside the sheet on record."""
    body = [[name, *(interval(found[key], style) for _, key, style in RELAXED)] for name, found in content["methods"].items()]
    return table([f"method ({content['n']} sheets)", *(label for label, _, _ in RELAXED)], body)


def ladder_relaxed_pairs(content: Mapping[str, Any]) -> str:
    """Return on how many sheets one method alone comes as low as the sheet on record, and McNemar's exact p."""
    body = [
        [name, str(m["first_alone"]), str(m["second_alone"]), formatted(m["p"], ".1g")] for name, m in content["paired"].items()
    ]
    return table(["first against second", "first alone", "second alone", "p"], body)


def ladder_denoising(content: Mapping[str, Any]) -> str:
    """Return how well one step of the refiner removes noise."""
    body = []
    for row in content["denoising"]:
        body.append([f"{row[f'{part}_after']:.3f} ({row[f'{part}_before']:.3f})" for part in ("height", "in_plane", "strain")])
    return table(["heights (Å)", "in-plane (Å)", "strain"], body)


REFINED = ", refined"


def diffusion_trials(content: Mapping[str, Any]) -> str:
    """Return how often the first sample of the diffusion of coordinates is the sheet on record, by settings of the sampler."""
    found, body = content["trials"], []
    for name, rates in found.items():
        if name.endswith(REFINED):
            continue
        refined = found.get(name + REFINED)
        cells = [_share(own[bound]) if own else MISSING for own in (rates, refined) for bound in ("strict", "loose")]
        body.append([name, *cells])
    return table([f"{content['n']} sheets", "strict", "loose", "strict, refined", "loose, refined"], body)


REMOVED = (("heights (Å)", "height", ".3f"), ("in-plane (Å)", "in_plane", ".3f"), ("S (%)", "lattice", ".1%"))


def diffusion_denoising(content: Mapping[str, Any]) -> str:
    """Return how well one step of the diffusion of coordinates estimates the clean sheet at each time."""
    body = []
    for row in content["denoising"]:
        values = [[formatted(row[f"{name}_{when}"], style) for when in ("after", "before")] for _, name, style in REMOVED]
        body.append([str(row["t"]), *(f"{after} ({before})" for after, before in values)])
    return table(["t of 1,000", *(label for label, _, _ in REMOVED)], body)


EXPECTED = (("hits to expect (mean p_hit)", "p_hits"), ("new hits to expect", "new_p_hits"))
SEARCH = (
    ("hits, best judge", "hit_rate", ".0%"),
    ("mean abs. ΔG_H, best judge (eV)", "mae_delta_g_ev", ".2f"),
    ("E_hull ≤ 0.1 eV/atom", "rate_metastable", ".0%"),
    ("not dissolved by water", "rate_not_dissolved", ".0%"),
    ("novel", "rate_novel", ".0%"),
    ("metastable S.U.N.", "rate_metastable_sun", ".0%"),
    ("Rate_synth", "rate_synth", ".0%"),
    ("median RMSD to relaxed (Å)", "median_rmsd_angstrom", ".2f"),
)


def searches(content: Mapping[str, Any], any_halides: bool = False) -> str:
    """Return what each way of choosing candidates gives, of equal numbers of judged sheets.

    any_halides: whether the table is of those without a quota of halides, beside draws without guidance, or of the others.
    """
    of_kind = [row["name"].endswith(ANY_HALIDES) == any_halides for row in content["searches"]]
    found = [row for row, own in zip(content["searches"], of_kind, strict=True) if own or row["name"] == UNGUIDED]
    names = {row["name"] for row in found}
    body = []
    for label, key in EXPECTED:
        expected = [row["expected"][key] for row in found]
        body.append([label, *(interval(own, ".1%") for own in expected)])
        for other in sorted(names & {name for own in expected for name in own["ratios"]}):
            ratios = [interval(own["ratios"][other], ".1f") if other in own["ratios"] else MISSING for own in expected]
            body.append([f"as many times as {other}", *ratios])
    body += [[label, *(interval(row["aggregates"][key], style) for row in found)] for label, key, style in SEARCH]
    for label, key in (
        ("distinct formulas", "formulas"),
        ("families", "families"),
        ("entropy of elements (bits)", "element_entropy_bits"),
    ):
        body.append([label, *(formatted(row[key]) for row in found)])
    return table(["", *(f"{row['name']} ({row['aggregates']['rate_valid']['n']})" for row in found)], body)


UNGUIDED, ANY_HALIDES = "elements, no guidance", "any halides"
ELEMENTS = (
    ("E_hull ≤ 0.1 eV/atom", "near_hull", ".0%"),
    ("conducts", "conducts", ".0%"),
    ("dynamically stable", "dynamically_stable", ".0%"),
    ("not dissolved by water", "not_dissolved", ".0%"),
    ("mean abs. ΔG_H (eV)", "abs_delta_g_ev", ".2f"),
    ("chance of a hit", "chance_of_a_hit", ".1%"),
    ("composition not in the training set", "new", ".0%"),
)


ASKED_OF_ELEMENTS = {"e_hull": "E_hull", "delta_g": "ΔG_H"}


def element_guidance(content: Mapping[str, Any]) -> str:
    """Return what classifier-free guidance does to the diffusion of elements, by its strength and by what it acts on."""
    rows = content["guidance"]
    body = [[label, *(interval(row["aggregates"][key], style) for row in rows)] for label, key, style in ELEMENTS]
    return table(["", *(f"{_guided_by(row)} ({row['n']})" for row in rows)], body)


def _guided_by(row: Mapping[str, Any]) -> str:
    """Return w, and what is told where that is not everything or only the elements are."""
    if row["arrangements_guided"]:
        return f"w {row['cfg_scale']:g}"
    told = row["told"]
    asked = ASKED_OF_ELEMENTS[told[0]] if len(told) == 1 else "all"
    return f"w {row['cfg_scale']:g}, elements alone, {asked}"


DISTRIBUTIONS = (
    ("shortest bond over the sum of covalent radii", "shortest_bond", ".4f"),
    ("layer group", "layer_group", ".2f"),
    ("number of elements", "number_of_elements", ".2f"),
)


def activity(content: Mapping[str, Any]) -> str:
    """Return how far trees, heads and DimeNet++ are from the judge's ΔG_H on formulas that the trees had not learnt from."""
    found = content["metrics"]
    names = [name for name in next(iter(found.values())) if name.startswith(("trees", "heads", "DimeNet++", "mean", "median"))]
    body = []
    for name in names:
        cells = [name]
        for row in found.values():
            spearman = row[name].get("spearman")
            cells += [_bracketed(row[name]["mae_ev"]), _bracketed(spearman) if spearman else MISSING]
        body.append(cells)
    heads = [f"{source} ({row['n']}): {what}" for source, row in found.items() for what in ("MAE (eV)", "Spearman")]
    return table(["", *heads], body)


# Ways of putting sheets first, as the sidecar of the trees names them -> in words.
PUT_FIRST = {
    "judge": "the judge itself",
    "trees": "trees that learnt this chance, as shipped",
    "trees, composition": "such trees on the composition alone",
    "ΔG_H by trees": "ΔG_H by trees, and its error",
    "ΔG_H by heads": "ΔG_H by heads, and its error",
    "all": "all sheets",
}


def put_first(content: Mapping[str, Any]) -> str:
    """Return the judge's mean chance of a hit's ΔG_H among the sheets that several ways put first."""
    found = content["put_first"]
    body = []
    for name, words in PUT_FIRST.items():
        value, low, high = found[name]
        body.append([words, interval({"value": value, "low": low, "high": high}, ".1%")])
    return table(["put first by", f"chance among the first {found['best']:.0%} of {found['n']:,}"], body)


def _share(found: Sequence[float]) -> str:
    """Write a share with its interval."""
    return interval(dict(zip(("value", "low", "high"), found, strict=True)), ".0%")


def _bracketed(found: Sequence[float]) -> str:
    """Write a value with its interval."""
    value, low, high = found
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def distributions(content: Mapping[str, Any]) -> str:
    """Return how far draws without guidance are from the crystals, and how far as many of these are from the others."""
    found = content["distributions"]
    body = []
    for label, key, style in DISTRIBUTIONS:
        own = found["of"][key]
        body.append([label, f"{own['distance']:{style}}", f"{own['floor']:{style}}", f"{own['distance'] / own['floor']:.1f}"])
    return table(["", f"{found['n']} draws to {found['crystals']:,} crystals", "as many crystals to the others", "ratio"], body)
