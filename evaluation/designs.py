"""Delivers the designs of a loop: sheets that are hits by DFT at the best of all competing sites, with what speaks against each.

    LOOP/designs/cifs/ judged/     the hits of all rounds, judged once more by all judges of stage 5, the costly ones too
    LOOP/designs/inputs/NAME/      H relaxed by the potential at every competing site
    LOOP/designs/dft/              single calculations: those of the rounds, and those of sites that no round has computed
    DESIGNS/NAME/                  card, CIFs, inputs for GPAW and VASP, energies
    DESIGNS/designs.json           everything that the cards say; hit rates of the rounds and of the controls
    DESIGNS/rounds/round_N/        of every round the log of choices, what DFT said, and its points
    DESIGNS/index.html, overview.png, hit_rates.png

A design is new, valid, stays one sheet, has |ΔG_H| <= ``evaluation.hit_delta_g_ev`` by DFT at its lowest site and E_above_hull <=
``evaluation.hit_e_hull_ev`` by the judges, and none of the faults of ``batch_choice.design_fault``. Each hit that is no design is
named with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read

from energetics.adsorption_energy import free_energy
from energetics.coverage import STAYS, Coverage, coverage_curve
from energetics.dft_points import DFT_ERROR_EV, TruthPoint, read_truth
from energetics.sites import is_inside
from evaluation import design_cards, loop_report
from evaluation.batch_choice import design_fault
from evaluation.candidate import P_SYNTH_THRESHOLD, CandidateResult
from evaluation.decisions import probability_below
from evaluation.design_loop import ASKED, STAGE, sidecar_path_of
from evaluation.element_facts import SCARCE_HHI
from evaluation.finalists import read_finalist
from evaluation.loop_tools import POINTS_DB, REAL, Tools
from evaluation.water_verdict import AS_STABLE
from pipeline.errors import StageError, first_line
from pipeline.files import atomic_folder, relative_name, write_json
from pipeline.provenance import read_sidecar, write_sidecar
from pipeline.settings import Config, EvaluationConfig
from pipeline.shipped import with_shipped_weights

log = logging.getLogger("her2d")

NAME = "deliver_designs"
DEAR_USD_PER_KG = 10_000.0
CHANGE_EV = 0.2  # of ΔG_H with coverage that is worth a word
NEAR_THE_LIMIT = 0.16  # probability of lying above the limit of E_above_hull: one standard error


@dataclass(frozen=True)
class SiteValue:
    """H at one site: ΔE_H by the potential and ΔG_H by DFT, eV; NaN where DFT has no value."""

    site: str
    delta_e_potential_ev: float
    delta_g_dft_ev: float


@dataclass(frozen=True)
class Design:
    """A delivered sheet.

    name: of its folder. round_name: in the loop. row: what the judges say today. before: the record of its choice, with what they
    said before DFT. sites: lowest by DFT first. with_h: supercell with H at the lowest. coverage: by the potential. against: what
    speaks against it.
    """

    name: str
    round_name: str
    row: CandidateResult
    before: Mapping[str, Any]
    sites: Sequence[SiteValue]
    with_h: Atoms
    coverage: Sequence[Coverage]
    against: Sequence[str]

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
            "sites": [dataclasses.asdict(site) for site in self.sites],
            "coverage": [dataclasses.asdict(point) for point in self.coverage],
            "against": list(self.against),
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
    work, target = loop / "designs", Path(cfg.loop.designs_dir)
    rounds = dict(finished_rounds(loop))
    if not rounds:
        raise StageError(f"{relative_name(loop)} has no finished round: run scripts.design_loop first")
    hits = {sheet["name"]: (path, sheet) for path in rounds.values() for sheet in _sheets_of(path) if sheet["hit"]}
    log.info("%d hits by DFT in %d rounds", len(hits), len(rounds))
    left_out: dict[str, str] = {}
    designs: list[Design] = []
    if hits:
        _copy_cifs(hits, work / "cifs")
        rows, structures = tools.judge(cfg, work / "cifs", work / "judged", "designs")
        rows = [row for row in rows if row.id in hits]
        left_out = {row.id: fault for row in rows if (fault := _fault(row, cfg.evaluation))}
        rows = [row for row in rows if row.id not in left_out]
        more_sites = dataclasses.replace(cfg, loop=dataclasses.replace(cfg.loop, max_sites=cfg.loop.design_sites))
        tools.prepare(more_sites, rows, structures, work / "inputs")
        points = _points(more_sites, rows, rounds, work, tools)
        designs, more_left_out = _designs(cfg, rows, hits, points, work, coverage)
        left_out |= more_left_out
    _write(cfg, designs, left_out, rounds, work, target)
    return designs


def finished_rounds(loop: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of every finished round, in order."""
    number = 1
    while sidecar_path_of(folder := loop / f"round_{number}").is_file():
        yield folder.name, folder
        number += 1


def _sheets_of(folder: Path) -> list[dict[str, Any]]:
    """Return the outcomes of a round. Raises StageError."""
    return _read_json(folder / "results.json")["sheets"]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{relative_name(path)} cannot be read ({first_line(error)})") from error


def _copy_cifs(hits: Mapping[str, tuple[Path, Mapping[str, Any]]], folder: Path) -> None:
    """Copy the CIFs of the hits, named as in the loop."""
    with atomic_folder(folder) as new:
        for name, (path, _) in hits.items():
            source = path / ASKED / f"{name}.cif"
            if not source.is_file():
                raise StageError(f"{relative_name(source)} is missing, which {name} was generated as")
            shutil.copyfile(source, new / f"{name}.cif")


def _fault(row: CandidateResult, settings: EvaluationConfig) -> str:
    """Return why a hit by DFT is no design by the judges of today; empty where it is one."""
    if fault := design_fault(row, settings):
        return fault
    above = row.e_above_hull_ev > settings.hit_e_hull_ev
    return f"E_above_hull {row.e_above_hull_ev:.2f} eV/atom by the judges of today" if above else ""


def _points(
    cfg: Config, rows: Sequence[CandidateResult], rounds: Mapping[str, Path], work: Path, tools: Tools
) -> dict[str, list[TruthPoint]]:
    """Return name -> DFT points at all competing sites; what the rounds have computed is not computed again."""
    folder = work / "dft"
    folder.mkdir(parents=True, exist_ok=True)
    for path in rounds.values():
        for record in (path / "dft").glob("*.json"):
            if not (folder / record.name).is_file():
                shutil.copyfile(record, folder / record.name)
    inputs = {row.id: work / "inputs" / row.id for row in rows}
    with_sites = {
        name: path / "dft.extxyz"
        for name, path in inputs.items()
        if (path / "finalist.json").is_file() and read_finalist(path)["sites"]
    }
    if with_sites:
        tools.compute(cfg, with_sites, folder)
    found: dict[str, list[TruthPoint]] = {name: [] for name in inputs}
    if (folder / POINTS_DB).is_file():
        for point in read_truth(folder / POINTS_DB, with_unbound=True):
            found.setdefault(point.name, []).append(point)
    return {name: sorted(own, key=lambda point: point.delta_e) for name, own in found.items()}


def _designs(
    cfg: Config,
    rows: Sequence[CandidateResult],
    hits: Mapping[str, tuple[Path, Mapping[str, Any]]],
    points: Mapping[str, Sequence[TruthPoint]],
    work: Path,
    coverage: CoverageTool,
) -> tuple[list[Design], dict[str, str]]:
    """Return the designs, nearest to ΔG_H = 0 first, and name -> reason of the hits that are none."""
    settings, left_out = cfg.evaluation, {}
    kept: dict[str, tuple[CandidateResult, list[SiteValue]]] = {}
    for row in rows:
        sites = site_values(work / "inputs" / row.id, points[row.id], cfg.dataset.her_correction_ev)
        if not sites or math.isnan(sites[0].delta_g_dft_ev):
            left_out[row.id] = "no DFT value at a competing site"
        elif abs(sites[0].delta_g_dft_ev) > settings.hit_delta_g_ev:
            left_out[row.id] = f"ΔG_H {sites[0].delta_g_dft_ev:+.2f} eV by DFT at {sites[0].site}"
        else:
            kept[row.id] = row, sites
    asked = {}
    for name in kept:
        clean = read(work / "inputs" / name / "dft.extxyz", index=0)
        asked[name] = (clean, points[name][0].atoms)
    curves = coverage(cfg, asked) if asked else {}
    designs = []
    for name, (row, sites) in kept.items():
        against = arguments_against(row, sites, curves[name], settings)
        if is_inside(points[name][0].atoms):
            against.insert(0, "H is inside the sheet, which it has to enter, and not on a face")
        folder = f"{row.formula}_{name}"  # without brackets, for shells
        designs.append(Design(folder, name, row, hits[name][1], sites, points[name][0].atoms, curves[name], against))
    return sorted(designs, key=lambda design: (abs(design.delta_g_dft_ev), design.name)), left_out


def site_values(folder: Path, points: Sequence[TruthPoint], her_correction_ev: float) -> list[SiteValue]:
    """Return the competing sites of a sheet, lowest by DFT first, those without a DFT value last.

    Args:
        folder: of its inputs.
        points: its DFT points.
        her_correction_ev: ΔG_H − ΔE_H.
    """
    by_dft = {point.site: free_energy(point.delta_e, her_correction_ev) for point in points}
    frames = read(folder / "dft.extxyz", index="1:")
    given = {str(frame.info["site"]): float(frame.info.get("delta_e_potential_ev", math.nan)) for frame in frames}
    sites = [SiteValue(site, given.get(site, math.nan), by_dft.get(site, math.nan)) for site in {**given, **by_dft}]
    return sorted(sites, key=lambda s: (math.isnan(s.delta_g_dft_ev), s.delta_g_dft_ev))


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


def _write(
    cfg: Config,
    designs: Sequence[Design],
    left_out: Mapping[str, str],
    rounds: Mapping[str, Path],
    work: Path,
    target: Path,
) -> None:
    """Write the folder of designs as a whole."""
    numbers = {name: read_sidecar(path, stage=STAGE)["metrics"] for name, path in rounds.items()}
    numbers |= {"all": loop_report.total(list(numbers.values()))}
    with atomic_folder(target) as new:
        for design in designs:
            folder = new / design.name
            shutil.copytree(work / "inputs" / design.round_name, folder)
            (folder / "finalist.json").unlink()
            write_json(folder / "energies.json", _energies(design, work))
            design_cards.draw_card(design, folder / "card.png")
        for name, path in rounds.items():
            (new / "rounds" / name).mkdir(parents=True)
            for file in (path / "choices.json", path / "results.json", path / "dft" / POINTS_DB):
                if file.is_file():  # a round without a site to compute has no points
                    shutil.copyfile(file, new / "rounds" / name / file.name)
        write_json(new / "designs.json", {"designs": [d.as_dict() for d in designs], "left_out": dict(left_out), "rounds": numbers})
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


def _energies(design: Design, work: Path) -> dict[str, Any]:
    """Return the energies of DFT (eV) of the sheet and of every site, from the records of its calculations."""
    labels = {f"{design.round_name} {site.site}": site.site for site in design.sites} | {f"{design.round_name} clean": "clean"}
    found = {}
    for path in (work / "dft").glob("*.json"):
        record = _read_json(path)
        if record.get("label") in labels or record.get("label") == "H2":
            name = labels.get(record["label"], "H2")
            found[name] = {key: record.get(key) for key in ("energy", "kpts", "spin", "natoms", "seconds")}
    return found
