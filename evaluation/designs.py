"""Delivers the designs of a loop: sheets that are hits by DFT at the best of all competing sites, with what speaks against each.

    LOOP/designs/inputs/NAME/      H relaxed by the potentials at every competing site, of sheets near zero
    LOOP/designs/dft/              single calculations: those of the rounds, of sites that no round has computed, of relaxations
    LOOP/designs/cifs/ judged/     the hits, judged once more by all judges of stage 5, the costly ones too
    DESIGNS/NAME/                  card, CIFs, inputs for GPAW and VASP, minima of DFT (relaxed.extxyz), energies
    DESIGNS/designs.json           everything that the cards say; hit rates of the rounds and of the controls
    DESIGNS/rounds/round_N/        of every round the log of choices, what DFT said, and its points; the card of heads (heads.json)
    DESIGNS/h_on_2d_relaxed.db     the minima of DFT of all sheets near zero, designs or not
    DESIGNS/index.html, overview.png, hit_rates.png

The rounds compute single points. Where all atoms relax by DFT, the sheet with H comes down by more than the sheet alone, and a hit
by single points may be none. So every sheet whose ΔG_H by single points lies between −``evaluation.hit_delta_g_ev`` and
``loop.relax_below_ev``, and whose E_above_hull is low enough, is relaxed by DFT (``loop.relax_steps``) at the sites near its
lowest. A sheet that cannot be is no hit.

With ``loop.earlier_designs`` the rounds and designs of another delivery come first, as they are: what is asked anew is sheets near
zero whose minima were not known there. A hit among these is judged as it was relaxed, because its CIF is gone.

A design is new, valid, stays one sheet, has |ΔG_H| <= ``evaluation.hit_delta_g_ev`` at its lowest site and E_above_hull <=
``evaluation.hit_e_hull_ev`` by the judges, and none of the faults of ``batch_choice.design_fault``. Each hit that is no design is
named with the reason.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect
from ase.io import read

from crystals.cif_writer import in_cif_setting, symmetric_cif
from energetics.coverage import STAYS, Coverage, coverage_curve
from energetics.dft_calculation import ENERGY
from energetics.dft_points import DFT_ERROR_EV, TruthPoint
from energetics.dft_rows import COVERED
from energetics.sites import is_inside
from evaluation import design_cards, loop_report
from evaluation.batch_choice import design_fault
from evaluation.candidate import P_SYNTH_THRESHOLD, CandidateResult
from evaluation.decisions import probability_below
from evaluation.design_loop import ASKED, HEADS, sidecar_path_of
from evaluation.design_values import (
    DESIGNS,
    Near,
    SiteValue,
    gaps_of,
    is_hit,
    lowest_atoms,
    near_sheets,
    numbers_of,
    read_json,
    relaxation_change,
    relaxed_points,
    sheets_of,
    single_points,
    site_values,
    why_no_hit,
)
from evaluation.earlier_designs import DESIGNS_JSON, EarlierDesigns, earlier_designs
from evaluation.element_facts import SCARCE_HHI
from evaluation.loop_tools import POINTS_DB, REAL, RELAXED_DB, Tools
from evaluation.relaxation_change import UNKNOWN_CHANGE
from evaluation.water_verdict import AS_STABLE
from pipeline.errors import StageError
from pipeline.files import atomic_folder, relative_name, write_json
from pipeline.provenance import sidecar_path, write_sidecar
from pipeline.records import from_json
from pipeline.settings import Config, EvaluationConfig
from pipeline.shipped import with_shipped_weights

log = logging.getLogger("her2d")

NAME = "deliver_designs"
HEADS_CARD = "heads.json"  # model card of the denoiser whose heads a round has trained
DEAR_USD_PER_KG = 10_000.0
CHANGE_EV = 0.2  # of ΔG_H with coverage that is worth a word
NEAR_THE_LIMIT = 0.16  # probability of lying above the limit of E_above_hull: one standard error


@dataclass(frozen=True)
class Design:
    """A delivered sheet.

    name: of its folder. round_name: in the loop. row: what the judges say today. before: the record of its choice, with what they
    said before DFT. sites: lowest by DFT first. with_h: supercell with H at the lowest. coverage: by the potential. against: what
    speaks against it. gap_by_dft: whether the band gap of the row is PBE's at the k-points of the cell, or the learnt one.
    """

    name: str
    round_name: str
    row: CandidateResult
    before: Mapping[str, Any]
    sites: Sequence[SiteValue]
    with_h: Atoms
    coverage: Sequence[Coverage]
    against: Sequence[str]
    gap_by_dft: bool = False

    @property
    def delta_g_dft_ev(self) -> float:
        """ΔG_H by DFT at the lowest site, eV."""
        return self.sites[0].delta_g_dft_ev

    def as_dict(self) -> dict[str, Any]:
        """Return what ``designs.json`` holds."""
        return {
            "name": self.name,
            "round_name": self.round_name,
            "delta_g_dft_ev": self.delta_g_dft_ev,
            "sites": [site.as_dict() for site in self.sites],
            "coverage": [dataclasses.asdict(point) for point in self.coverage],
            "against": list(self.against),
            "gap_by_dft": self.gap_by_dft,
            "before": dict(self.before),
            "judged": dataclasses.asdict(self.row),
        }


CoverageTool = Callable[[Config, Mapping[str, tuple[Atoms, Atoms]]], Mapping[str, Sequence[Coverage]]]


def coverage_by_potential(cfg: Config, sheets: Mapping[str, tuple[Atoms, Atoms]]) -> dict[str, Sequence[Coverage]]:
    """Return the coverage curve of every sheet by the potential that judges. sheets: name -> arguments of ``coverage_curve``."""
    from energetics.potential_loading import load_stability_judge

    potential = load_stability_judge(cfg).potential
    return {name: coverage_curve(clean, with_h, potential) for name, (clean, with_h) in sheets.items()}


def deliver(cfg: Config, tools: Tools = REAL, coverage: CoverageTool = coverage_by_potential) -> list[Design]:
    """Write the designs of the finished rounds of a loop.

    Args:
        cfg: all settings.
        tools: what judges, relaxes H and computes DFT.
        coverage: computes coverage curves.

    Raises:
        StageError: no round is finished, or a file of one cannot be read.
    """
    cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser"))
    if shipped:
        log.info("%s", shipped)
    loop = Path(cfg.loop.output_dir)
    work, target = loop / DESIGNS, Path(cfg.loop.designs_dir)
    earlier = earlier_designs(cfg)
    rounds = (earlier.rounds if earlier else {}) | dict(finished_rounds(loop, first=1 + len(earlier.rounds if earlier else ())))
    if not rounds:
        raise StageError(f"{relative_name(loop)} has no finished round: run scripts.design_loop first")
    near = {name: one for path in rounds.values() for name, one in near_sheets(path, cfg).items()}
    near = {name: one for name, one in near.items() if not (earlier and earlier.is_decided(name))}
    log.info("%d sheets near zero by DFT in %d rounds", len(near), len(rounds))
    more_sites = dataclasses.replace(cfg, loop=dataclasses.replace(cfg.loop, max_sites=cfg.loop.design_sites))
    tools.prepare(more_sites, [one.row for one in near.values()], {n: one.sheet for n, one in near.items()}, work / "inputs")
    points = single_points(cfg, near, rounds, work, tools)
    relaxed = relaxed_points(cfg, points, work, tools)
    values = {
        name: site_values(work / "inputs" / name, points[name], relaxed.get(name, ()), cfg.dataset.her_correction_ev)
        for name in near
    }
    hits = {name: one for name, one in near.items() if not why_no_hit(values[name], cfg)}
    left_out = {name: why_no_hit(values[name], cfg) for name in near if name not in hits}
    designs: list[Design] = []
    if hits:
        _copy_cifs(hits, work / "cifs", earlier)
        rows, _ = tools.judge(cfg, work / "cifs", work / "judged", "designs")
        gaps = gaps_of(work / "dft" / RELAXED_DB)
        rows = [_with_gap(row, gaps.get(row.id), cfg.evaluation) for row in rows if row.id in hits]
        left_out |= {row.id: fault for row in rows if (fault := _fault(row, cfg.evaluation))}
        rows = [row for row in rows if row.id not in left_out]
        minima = {row.id: lowest_atoms(values[row.id], points[row.id], relaxed.get(row.id, ())) for row in rows}
        designs = _designs(cfg, rows, hits, values, minima, gaps, work, coverage)
    everything = sorted([*_carried(earlier), *designs], key=lambda design: (abs(design.delta_g_dft_ev), design.name))
    left_out = (earlier.left_out if earlier else {}) | left_out
    _write(cfg, Delivery(everything, left_out, rounds, values, relaxed, work, earlier), target)
    return everything


def _carried(earlier: EarlierDesigns | None) -> list[Design]:
    """Return the designs of another delivery, as they are."""
    found = []
    for values in earlier.content["designs"] if earlier else ():
        known = {key: values[key] for key in ("name", "round_name", "before", "against", "gap_by_dft")}
        sites = [from_json(SiteValue, site) for site in values["sites"]]
        coverage = [from_json(Coverage, point) for point in values["coverage"]]
        row = from_json(CandidateResult, values["judged"])
        found.append(Design(row=row, sites=sites, with_h=earlier.with_h(values), coverage=coverage, **known))
    return found


def finished_rounds(loop: Path, first: int = 1) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of every finished round of a loop, in order. first: number of its first."""
    number = first
    while sidecar_path_of(folder := loop / f"round_{number}").is_file():
        yield folder.name, folder
        number += 1


def _copy_cifs(hits: Mapping[str, Near], folder: Path, earlier: EarlierDesigns | None) -> None:
    """Copy the CIFs of the hits, named as in the loop, or write the relaxed sheet where it is of a delivered round."""
    with atomic_folder(folder) as new:
        for name, one in hits.items():
            source = one.folder / ASKED / f"{name}.cif"
            if earlier and one.folder in earlier.rounds.values():
                (new / f"{name}.cif").write_text(symmetric_cif(in_cif_setting(one.sheet), name), encoding="utf-8")
                continue
            if not source.is_file():
                raise StageError(f"{relative_name(source)} is missing, which {name} was generated as")
            shutil.copyfile(source, new / f"{name}.cif")


def _fault(row: CandidateResult, settings: EvaluationConfig) -> str:
    """Return why a hit by DFT is no design by the judges of today; empty where it is one."""
    if fault := design_fault(row, settings):
        return fault
    above = row.e_above_hull_ev > settings.hit_e_hull_ev
    return f"E_above_hull {row.e_above_hull_ev:.2f} eV/atom by the judges of today" if above else ""


def _with_gap(row: CandidateResult, gap: float | None, settings: EvaluationConfig) -> CandidateResult:
    """Return a verdict with the gap by DFT, where there is one, in the place of the learnt one."""
    if gap is None:
        return row
    return dataclasses.replace(row, band_gap_ev=gap, conductive=gap <= settings.conductive_gap_ev)


def _designs(
    cfg: Config,
    rows: Sequence[CandidateResult],
    hits: Mapping[str, Near],
    values: Mapping[str, Sequence[SiteValue]],
    minima: Mapping[str, Atoms],
    gaps: Collection[str],
    work: Path,
    coverage: CoverageTool,
) -> list[Design]:
    """Return the designs, nearest to ΔG_H = 0 first."""
    asked = {row.id: (read(work / "inputs" / row.id / "dft.extxyz", index=0), minima[row.id]) for row in rows}
    curves = coverage(cfg, asked) if asked else {}
    designs = []
    for row in rows:
        sites = values[row.id]
        against = arguments_against(row, sites, curves[row.id], cfg.evaluation)
        if is_inside(minima[row.id]):
            against.insert(0, "H is inside the sheet, which it has to enter, and not on a face")
        folder = f"{row.formula}_{row.id}"  # without brackets, for shells
        design = Design(folder, row.id, row, hits[row.id].outcome, sites, minima[row.id], curves[row.id], against, row.id in gaps)
        designs.append(design)
    return sorted(designs, key=lambda design: (abs(design.delta_g_dft_ev), design.name))


def arguments_against(
    row: CandidateResult, sites: Sequence[SiteValue], curve: Sequence[Coverage], settings: EvaluationConfig
) -> list[str]:
    """Return what speaks against a design, in words.

    Args:
        row: what the judges say.
        sites: lowest by DFT first.
        curve: of coverage, by the potential.
        settings: limits.
    """
    found = []
    if settings.hit_delta_g_ev - abs(sites[0].delta_g_dft_ev) < DFT_ERROR_EV:
        found.append(f"ΔG_H is nearer to the limit than DFT is converged ({DFT_ERROR_EV:g} eV)")
    if missing := sum(math.isnan(site.delta_g_dft_ev) for site in sites):
        found.append(f"{missing} competing sites without a DFT value")
    limit, e_hull, std = settings.hit_e_hull_ev, row.e_above_hull_ev, row.e_above_hull_std_ev
    if 1 - probability_below(limit, e_hull, std) > NEAR_THE_LIMIT:
        found.append(f"E_hull may be above {limit:g} eV/atom ({e_hull:.2f} ± {std:.2f})")
    if row.dynamically_stable is None:
        found.append("dynamic stability is not known")
    if row.conductive is None:
        found.append("conductivity is not known")
    if row.water != AS_STABLE:
        found.append(f"in water: {row.water or 'not known'}")
    if not row.p_synth >= P_SYNTH_THRESHOLD:
        found.append("synthesizability is not known" if math.isnan(row.p_synth) else f"P_synth {row.p_synth:.2f}")
    if row.exfoliable == "hardly":
        found.append(f"hard to peel off its crystal ({row.exfoliation_mev_per_a2:.0f} meV/Å²)")
    if row.price_usd_per_kg > DEAR_USD_PER_KG:
        found.append(f"its elements cost {row.price_usd_per_kg:,.0f} US dollars per kg")
    if row.hhi_reserve > SCARCE_HHI:
        found.append(f"reserves of its elements lie in few countries (HHI {row.hhi_reserve:,.0f})")
    if changes := [c.differential - curve[0].differential for c in curve[1:] if c.status == STAYS]:
        largest = max(changes, key=abs)
        if abs(largest) > CHANGE_EV:
            found.append(f"ΔG_H of the next H changes by {largest:+.2f} eV on the way to a monolayer (potential)")
    if curve and curve[-1].status != STAYS:
        found.append(f"at {curve[-1].coverage:.2f} H per repeat unit: {curve[-1].status} (potential)")
    return found


@dataclass(frozen=True)
class Delivery:
    """Everything that is delivered.

    designs: nearest to ΔG_H = 0 first, those of an earlier delivery included. left_out: sheets near zero, and why they are no
    designs. rounds: name -> folder. values: of the sheets near zero that this delivery asked about, relaxed: their minima of DFT.
    work: folder of these. earlier: delivery that this one goes on from.
    """

    designs: Sequence[Design]
    left_out: Mapping[str, str]
    rounds: Mapping[str, Path]
    values: Mapping[str, Sequence[SiteValue]]
    relaxed: Mapping[str, Sequence[TruthPoint]]
    work: Path
    earlier: EarlierDesigns | None


def _files_of_round(path: Path) -> list[tuple[Path, str]]:
    """Return files of a round, of a loop or delivered, with their names in a delivery; not all are there."""
    same = [(path / name, name) for name in ("choices.json", "results.json", POINTS_DB, HEADS_CARD)]
    return [*same, (path / "dft" / POINTS_DB, POINTS_DB), (sidecar_path(path / HEADS), HEADS_CARD)]


def _write(cfg: Config, all_of: Delivery, target: Path) -> None:
    """Write the folder of designs as a whole."""
    designs, left_out, rounds, work, earlier = all_of.designs, all_of.left_out, all_of.rounds, all_of.work, all_of.earlier
    numbers = {name: _numbers_of(path, all_of, cfg) for name, path in rounds.items()}
    numbers |= {"all": loop_report.total(list(numbers.values()))}
    correction = cfg.dataset.her_correction_ev
    change = relaxation_change(work / "dft", correction, earlier.change(correction) if earlier else UNKNOWN_CHANGE)
    with atomic_folder(target) as new:
        for design in designs:
            _write_design(design, all_of, new / design.name)
        for name, path in rounds.items():
            (new / "rounds" / name).mkdir(parents=True)
            for file, given in _files_of_round(path):
                if file.is_file():  # a round without a site to compute has no points
                    shutil.copyfile(file, new / "rounds" / name / given)
        _write_all_minima(all_of, new / RELAXED_DB)
        about = {"left_out": dict(left_out), "rounds": numbers, "relaxation_change": change.as_dict()}
        write_json(new / DESIGNS_JSON, {"designs": [d.as_dict() for d in designs], **about})
        if designs:
            design_cards.draw_overview(designs, new / "overview.png")
        design_cards.draw_hit_rates(numbers, new / "hit_rates.png")
        design_cards.write_page(designs, left_out, numbers, cfg, new / "index.html")
        write_sidecar(
            new,
            stage=NAME,
            seed=cfg.run.seed,
            settings=cfg.loop,
            inputs=[path / "results.json" for path in rounds.values()],
            counts={"hits": len(designs) + len(left_out), "designs": len(designs), "left_out": len(left_out)},
            metrics=numbers["all"],
        )


def _write_design(design: Design, all_of: Delivery, folder: Path) -> None:
    """Write the folder of a design; that of an earlier delivery stays as it is, but for the card."""
    if all_of.earlier and all_of.earlier.is_decided(design.round_name):
        shutil.copytree(all_of.earlier.folder / design.name, folder)
        design_cards.draw_card(design, folder / "card.png")
        return
    shutil.copytree(all_of.work / "inputs" / design.round_name, folder)
    (folder / "finalist.json").unlink()
    write_json(folder / "energies.json", _energies(design, all_of.work))
    if minima := all_of.relaxed.get(design.round_name):
        _write_minima(folder / "relaxed.extxyz", minima)
    design_cards.draw_card(design, folder / "card.png")


def _write_all_minima(all_of: Delivery, path: Path) -> None:
    """Write the minima of DFT of all sheets near zero, those of an earlier delivery first, without what was asked anew."""
    before = all_of.earlier.folder / RELAXED_DB if all_of.earlier else None
    own = all_of.work / "dft" / RELAXED_DB
    old, new = (list(connect(source).select()) if source and source.is_file() else [] for source in (before, own))
    anew = {row.name for row in new}
    if rows := [row for row in old if row.name not in anew] + new:
        with connect(path, type="db") as db:
            for row in rows:
                db.write(row.toatoms(), **row.key_value_pairs)


def _numbers_of(folder: Path, all_of: Delivery, cfg: Config) -> dict[str, Any]:
    """Return the numbers of a round, with hits by the minima of DFT where these decide."""
    numbers = numbers_of(folder)
    if not cfg.loop.relax_steps:
        return numbers

    def verdict(sheet: Mapping[str, Any]) -> bool | None:
        if all_of.earlier and folder in all_of.earlier.rounds.values() and sheet["name"] not in all_of.values:
            return all_of.earlier.verdict(sheet)
        return is_hit(sheet, all_of.values, cfg)

    return loop_report.with_hits(numbers, sheets_of(folder), verdict)


def _write_minima(path: Path, minima: Sequence[TruthPoint]) -> None:
    """Write the clean sheet and the sheet with H at every site as DFT relaxed them."""
    from ase.io import write

    frames = [minima[0].clean.copy(), *(point.atoms.copy() for point in minima)]
    for frame, label in zip(frames, ("clean", *(point.site for point in minima)), strict=True):
        frame.info = {"site": label}
        frame.calc = None
    write(path, frames, format="extxyz")


def _energies(design: Design, work: Path) -> dict[str, Any]:
    """Return the energies of DFT (eV) of the sheet and of every site: single points from their records, and minima.

    Those of the minima are under "relaxed", with the energy of the sheet without H, steps, the largest force (eV/Å) and the move
    of H (Å).
    """
    labels = {f"{design.round_name} {site.site}": site.site for site in design.sites} | {f"{design.round_name} clean": "clean"}
    found: dict[str, Any] = {}
    for path in (work / "dft").glob("*.json"):
        record = read_json(path)
        if record.get("kind") == ENERGY and (record.get("label") in labels or record.get("label") == "H2"):
            name = labels.get(record["label"], "H2")
            found[name] = {key: record.get(key) for key in ("energy", "kpts", "spin", "natoms", "seconds")}
    if (path := work / "dft" / RELAXED_DB).is_file():
        keys = ("energy_dft", "energy_clean_dft", "dE_dft", "relax_steps", "fmax_dft", "h_move")
        rows = list(connect(path).select(name=design.round_name, kind=COVERED))
        if rows:
            found["relaxed"] = {row.site: {key: row.get(key) for key in keys} for row in rows}
    return found
