"""Quick tools for the design loop: made-up verdicts, EMT in the place of DFT, and a counter that stops the loop at a call."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from ase import Atoms

from crystals import validity
from crystals.cif import read_cif
from crystals.prototypes import honeycomb
from energetics.dft_inputs import write_dft_input
from evaluation.candidate import CandidateResult
from evaluation.decisions import hit_probability
from evaluation.loop_tools import POINTS_DB, RELAXED_DB, Tools
from pipeline.files import atomic_folder, write_json
from pipeline.loading import load_config
from pipeline.settings import Config, EvaluationConfig
from scripts import verify_dft

ELEMENTS = ("Cu", "Ag", "Au", "Pt", "Pd", "Ni", "Al")  # those that EMT knows


class Killed(BaseException):
    """The loop was stopped here."""


def write_cifs(folder: Path, texts: list[str]) -> None:
    """Write files that ``judge`` reads: each holds two elements."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, text in enumerate(texts):
        (folder / f"gen_{k:05d}.cif").write_text(text)


def configuration(folder: Path, *overrides: str) -> Config:
    """Settings of a small loop that starts without DFT points."""
    checkpoint = folder / "first.pth"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text("weights")
    if not (folder / "decorations").is_dir():
        write_cifs(folder / "decorations", [f"{element} {element}" for element in ELEMENTS])
    given = [
        f"run.output_dir={folder}", f"dimenet.checkpoint={checkpoint}", f"denoiser.checkpoint={checkpoint}",
        f"evaluation.dft_truth_path={folder}/none.db", "evaluation.dft_blind_path=",
        f"evaluation.random_cif_dir={folder}/decorations",
        "loop.rounds=2", "loop.candidates=10", "loop.control_candidates=6", "loop.batch=4", "loop.controls=2",
        "loop.random_controls=1", "loop.max_dft_atoms=60", "loop.dft=dft_calculators:emt", "loop.neighbours=0",
        "loop.relax_steps=0",
    ]  # fmt: skip
    return load_config(None, [*given, *overrides])


def generate(config_path: Path, folder: Path, number: int, guided: bool) -> None:
    seed = yaml.safe_load(config_path.read_text(encoding="utf-8"))["run"]["seed"]
    with atomic_folder(folder) as new:
        rng = np.random.default_rng([seed, guided])
        write_cifs(new, [" ".join(sorted(rng.choice(ELEMENTS, 2, replace=False))) for _ in range(number)])


def row_of(path: Path, settings: EvaluationConfig) -> tuple[CandidateResult, Atoms]:
    """Return a sheet of the two elements of a file, or that of a CIF, and a verdict drawn by its name and elements."""
    text = path.read_text()
    sheet = read_cif(path) if text.startswith("data_") else honeycomb(*text.split())
    first, second = sheet.get_chemical_symbols()[:: len(sheet) - 1]
    formula = first + second if len(sheet) == 2 else sheet.get_chemical_formula()
    rng = np.random.default_rng([*path.stem.encode(), *first.encode(), *second.encode()])
    row = CandidateResult(
        id=path.stem, source_file=path.name, formula=formula, reduced_formula=formula, dimensionality=validity.SHEET,
        valid=True, sheet_relaxed=True, unique=True, novel=True, h_relax_converged=True,
        layer_group_relaxed=str(rng.choice(["p3m1", "p-3m1", "pmmn"])), delta_g_ev=float(rng.normal(0.2, 0.4)), delta_g_std_ev=0.3,
        delta_g_source="corrected potential", e_above_hull_ev=float(rng.exponential(0.1)), e_above_hull_std_ev=0.05,
    )  # fmt: skip
    row.p_hit = hit_probability(row, settings)
    return row, sheet


def judge(cfg: Any, cif_dir: Path, output_dir: Path, label: str) -> tuple[list[CandidateResult], dict[str, Atoms]]:
    found = [row_of(path, cfg.evaluation) for path in sorted(Path(cif_dir).glob("*.cif"))]
    return [row for row, _ in found], {row.id: sheet for row, sheet in found}


def prepare(cfg: Any, rows: list[CandidateResult], structures: dict[str, Atoms], folder: Path) -> None:
    """Put H on an atom of every sheet; on nickel the potential keeps it nowhere."""
    for row in rows:
        if (folder / row.id / "finalist.json").is_file():
            continue
        sheet = structures[row.id].copy()
        covered = sheet.copy()
        covered.append("H")
        covered.positions[-1] = covered.positions[0] + [0.1, 0.1, 1.5]
        site = SimpleNamespace(atoms=covered, delta_e=0.1)
        sites = [] if "Ni" in sheet.symbols else [(f"top{sheet.symbols[0]}", site)]
        with atomic_folder(folder / row.id) as new:
            write_dft_input(new / "dft.extxyz", row.id, sheet, sites, "sevennet-0")
            write_json(new / "finalist.json", {"sites": [label for label, _ in sites]})


def compute(cfg: Any, inputs: dict[str, Path], folder: Path) -> None:
    arguments = [*map(str, inputs.values()), "--work-dir", str(folder), "--database", str(folder / POINTS_DB)]
    assert verify_dft.main([*arguments, "--calculator", "dft_calculators:emt"]) == 0


def relax(cfg: Any, inputs: dict[str, Path], folder: Path) -> None:
    arguments = [*map(str, inputs.values()), "--work-dir", str(folder), "--database", str(folder / RELAXED_DB)]
    arguments += ["--calculator", "dft_calculators:emt", "--relax-steps", str(cfg.loop.relax_steps)]
    assert verify_dft.main(arguments) == 0


def complete(cfg: Any, path: Path) -> None:
    assert path.is_file()


def refit(cfg: Any, checkpoint: Path, folder: Path) -> None:
    with atomic_folder(folder) as new:
        shutil.copyfile(checkpoint, new / "dimenet.pth")


def teach(config_path: Path, overrides: list[str], folder: Path) -> None:
    with atomic_folder(folder) as new:
        (new / "denoiser.pth").write_text("\n".join(overrides))


QUICK = Tools(generate, judge, prepare, compute, relax, complete, refit, teach)


class Stopping:
    """Tools that stop the loop.

    at: number of the call before whose work the loop stops, from 1; 0: never. everywhere: it stops before and after the work of
    each call, at each once. calls: names of the calls made. stops: names of those that it stopped at.
    """

    def __init__(self, at: int = 0, everywhere: bool = False) -> None:
        self.at, self.everywhere, self.calls, self.stops = at, everywhere, [], []
        self._stopped: set[tuple[str, ...]] = set()
        self.tools = Tools(**{name: self._watched(name, function) for name, function in vars(QUICK).items()})

    def _watched(self, name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            which = name, *(str(argument) for argument in arguments if isinstance(argument, Path))
            self._stop(len(self.calls) == self.at, *which, "before")
            result = function(*arguments)
            self._stop(False, *which, "after")
            return result

        return call

    def _stop(self, is_asked: bool, *where: str) -> None:
        if is_asked or (self.everywhere and where not in self._stopped):
            self._stopped.add(where)
            self.stops.append(where[0])
            raise Killed
