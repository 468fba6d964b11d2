"""Declares the settings of the design loop."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.setting_field import setting


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop of generation, judges, DFT and learning."""

    output_dir: str = setting("${run.output_dir}/loop", "where the rounds go, a folder each", path=True)
    rounds: int = setting(3, "rounds of this loop; those that are finished stay, so that a larger number goes on", low=1)
    earlier_designs: str = setting(
        "", "folder of delivered designs, such as results/designs: this loop goes on after its rounds; empty: round 1", path=True
    )
    candidates: int = setting(256, "sheets that stage 4 generates in a round", low=1)
    more_cif_dirs: list[str] = setting(
        [], "folders of CIFs that stage 4 wrote in other runs: rounds choose among them too", path=True
    )
    neighbours: int = setting(
        64, "sheets made from ones that DFT has found near zero, by one substitution, that a round chooses among too", low=0
    )
    neighbours_of: list[str] = setting(
        [], "names of these sheets in the DFT points; empty: all small cells with |ΔG_H| of at most 0.3 eV"
    )
    neighbour_elements: list[str] = setting([], "elements that they may have; empty: all but generation.exclude_elements")
    control_candidates: int = setting(16, "unguided sheets from which the controls are drawn", low=0)
    batch: int = setting(12, "sheets chosen for DFT in a round", low=1)
    explore_share: float = setting(0.25, "share of these that are chosen for what DFT teaches, not for p_hit", low=0, high=1)
    max_per_family: int = setting(2, "chosen sheets of one family (stoichiometry and layer group) in a round", low=1)
    controls: int = setting(3, "unguided sheets, drawn at random, that DFT computes beside them", low=0)
    random_controls: int = setting(2, "random decorations (evaluation.random_cif_dir), drawn at random, as well", low=0)
    neighbour_controls: int = setting(0, "neighbours that were not chosen, drawn at random, as well", low=0)
    train_heads: bool = setting(
        False,
        "train the heads of the denoiser after each round, by stages 2 and 3 on dataset.db_path (best that of its training) and "
        "all that was judged",
    )
    max_sites: int = setting(2, "H sites per sheet: the best one by the potential, and others within 0.25 eV", low=1)
    max_dft_atoms: int = setting(16, "largest cell that DFT is asked for, H included", low=3)
    dft: str = setting(
        "gpaw",
        "what computes: gpaw, vasp (inputs are written, results read at the next start), or MODULE:FUNCTION that returns an ASE "
        "calculator",
    )
    dft_python: str = setting("/usr/bin/python3", "Python that has ase and the calculator; Debian puts GPAW there; empty: this one")
    dft_processes: int = setting(1, "calculations at a time, a process of one thread each", low=1)
    vasp_results: str = setting(
        "",
        "vasp: folder with the vasprun.xml or OUTCAR of every calculation, as ROUND/NAME/CALCULATION; empty: where inputs are",
        path=True,
    )
    designs_dir: str = setting("${run.output_dir}/designs", "scripts.deliver_designs: where the designs go", path=True)
    design_sites: int = setting(4, "scripts.deliver_designs: H sites of a design that DFT computes at most, within 0.25 eV", low=1)
    relax_below_ev: float = setting(
        0.35, "scripts.deliver_designs: DFT relaxes sheets whose ΔG_H by single points is at most this, and no deep binding", low=0
    )
    relax_steps: int = setting(
        8, "scripts.deliver_designs: steps of these relaxations at most; 0: designs go by single points", low=0
    )
