"""The design loop: generate, judge, choose, compute by DFT, learn; in rounds, of which every step is resumable.

    LOOP/round_1/config.yaml         settings of the round, with which its stages run
    LOOP/round_1/generated/ unguided/ random/   CIFs: of stage 4 under guidance and without, and random decorations
    LOOP/round_1/neighbours/         CIFs: sheets that DFT found near zero, with one substitution (``neighbours``)
    LOOP/round_1/judged/SET/         what the judges say (metrics.csv, relaxed.extxyz); more_1/ of the first of
                                     loop.more_cif_dirs; neighbours_1/ of those of round 1; in those
                                     of later rounds round_1/
    LOOP/round_1/choices.json        the log of choices: which sheets DFT computes, each with the reason, and who was left out
    LOOP/round_1/asked/              the CIFs of the sheets that DFT computes
    LOOP/round_1/inputs/NAME/        H relaxed by the potential: dft.extxyz, finalist.json, inputs for VASP
    LOOP/round_1/dft/                single calculations, and the points of the round
    LOOP/round_1/points/             database of all points so far
    LOOP/round_1/dimenet/            DimeNet++ with its correction fitted to these
    LOOP/round_1/heads/              with loop.train_heads, the denoiser with heads that learnt from what the round has judged
    LOOP/round_1/results.json        DFT's verdicts, hit rates, the judge's error before it learnt
    LOOP/round_1/manifest.json       sidecar; a round with it is finished
    LOOP/rounds.json                 all rounds
    LOOP/earlier/                    what was learnt from the rounds of loop.earlier_designs, as in a round

A round judges with the points and the DimeNet++ of the round before: the correction of the potential is fitted to the points when
the judges are loaded. A finished step is a record in ROUND/steps. A step that was interrupted is done again, from what its own
parts have kept: batches of stage 4, verdicts, relaxed candidates, single calculations.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.data import atomic_numbers

from crystals.formulas import composition_key
from energetics.dft_points import read_truth
from evaluation import loop_report
from evaluation.batch_choice import Limits, Pick, choose_batch, cost_fault, draw_controls, worth_judging
from evaluation.candidate import CandidateResult, atoms_to_dict
from evaluation.design_values import DESIGNS, relaxation_change
from evaluation.earlier_designs import EarlierDesigns, earlier_designs, learnt_from
from evaluation.evaluate import find_cifs
from evaluation.finalists import read_finalist
from evaluation.loop_report import CHOSEN, NEIGHBOUR, RANDOM, RANDOM_NEIGHBOUR, UNGUIDED, Choice
from evaluation.loop_tools import POINTS_DB, REAL, Tools, join_points
from evaluation.neighbours import neighbours, parents_of, write_neighbours
from evaluation.relaxation_change import UNKNOWN_CHANGE, RelaxationChange
from evaluation.round_settings import FOLDERS, deciding_settings, settings_of_round
from evaluation.vasp_points import VASP
from generation.search import at_most
from pipeline.errors import ConfigError, StageError, first_line
from pipeline.files import atomic_folder, atomic_path, relative_name, write_json
from pipeline.locks import locked_folder
from pipeline.provenance import read_sidecar, sidecar_path, write_sidecar
from pipeline.records import from_json
from pipeline.settings import Config
from pipeline.shipped import with_shipped_weights
from pipeline.store import FolderStore

log = logging.getLogger("her2d")

STAGE = "design_loop.py"
ASKED = "asked"  # folder of the CIFs, by name, of the sheets that DFT is asked for
NEIGHBOURS = "neighbours"  # folder of their CIFs
HEADS = Path("heads") / "denoiser.pth"  # denoiser of a round whose heads were trained anew
RANDOM_PER_CONTROL = 3  # random decorations that are judged for each that may be drawn


def run_loop(cfg: Config, tools: Tools = REAL) -> None:
    """Do what is missing of ``loop.rounds`` rounds, and print the table of all of them.

    Args:
        cfg: the settings.
        tools: what the work is done with.

    Raises:
        ConfigError: ``loop.dft`` names nothing, or another setting of the loop makes no sense.
        StageError: a step cannot be done, or a round was begun with other settings.
    """
    settings = cfg.loop
    if settings.dft not in ("gpaw", VASP) and ":" not in settings.dft:
        raise ConfigError(f"loop.dft={settings.dft}: choose gpaw, {VASP} or MODULE:FUNCTION")
    if settings.controls > settings.control_candidates:
        raise ConfigError("loop.controls are drawn from loop.control_candidates sheets, which are fewer")
    if unknown := [symbol for symbol in settings.neighbour_elements if symbol not in atomic_numbers]:
        raise ConfigError(f"loop.neighbour_elements: {', '.join(unknown)} is no element")
    folder = Path(settings.output_dir)
    with locked_folder(folder, "loop.output_dir"):
        cfg, shipped = with_shipped_weights(cfg, ("dimenet", "denoiser"))
        if shipped:
            log.info("%s", shipped)
        earlier = earlier_designs(cfg)
        before, found = cfg, {}
        if earlier is not None:
            before, found = learnt_from(earlier, cfg, folder, tools), earlier.numbers()
        first = len(found) + 1
        for number in range(first, first + settings.rounds):
            own = folder / f"round_{number}"
            current = Round(number, own, settings_of_round(cfg, before, number, own), tools, earlier)
            found[f"round_{number}"] = current.finish()
            before = current.learnt()
            write_json(folder / "rounds.json", found | {"all": loop_report.total(found.values())})
    print(loop_report.rounds_table(found | {"all": loop_report.total(found.values())}))


@dataclass
class _Pool:
    """Sheets to choose from, with names that are unique in a loop.

    limits: what they must keep to. structures: relaxed sheets. cifs: the files they come from. refused: how many were not judged,
    by the reason.
    """

    limits: Limits
    rows: list[CandidateResult] = field(default_factory=list)
    structures: dict[str, Atoms] = field(default_factory=dict)
    cifs: dict[str, Path] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


class Round:
    """One round.

    Args:
        number: from 1, those of rounds that were delivered before included.
        folder: where everything of it goes.
        cfg: ``settings_of_round``.
        tools: what the work is done with.
        delivered: rounds before the loop.
    """

    def __init__(self, number: int, folder: Path, cfg: Config, tools: Tools, delivered: EarlierDesigns | None = None) -> None:
        self.number, self.folder, self.cfg, self.tools, self.delivered = number, folder, cfg, tools, delivered
        self.steps = FolderStore(folder / "steps")
        self.config_path = folder / "config.yaml"

    def finish(self) -> dict[str, Any]:
        """Do the steps that are missing, and return the numbers of the round; nothing is done in a finished round."""
        if sidecar_path_of(self.folder).is_file():
            return read_sidecar(self.folder, stage=STAGE)["metrics"]
        self._begin()
        log.info("round %d: %s", self.number, relative_name(self.folder))
        for step, work in (
            ("generate", self._generate),
            ("choose", self._choose),
            ("prepare", self._prepare),
            ("compute", self._compute),
            ("join", self._join),
            ("refit", self._refit),
            *([("teach", self._teach)] if self.cfg.loop.train_heads else []),
        ):
            if step not in self.steps:
                log.info("round %d: %s", self.number, step)
                self.steps.add(step, work())
        return self._report()

    def learnt(self) -> Config:
        """Return the settings with the points, the DimeNet++ and the denoiser that the round has learnt."""
        checkpoint, denoiser = self.folder / "dimenet" / "dimenet.pth", self.cfg.denoiser
        if self.cfg.loop.train_heads:
            denoiser = dataclasses.replace(denoiser, checkpoint=str(self._heads))
        return dataclasses.replace(
            self.cfg,
            dimenet=dataclasses.replace(self.cfg.dimenet, checkpoint=str(checkpoint)),
            denoiser=denoiser,
            evaluation=dataclasses.replace(self.cfg.evaluation, dft_truth_path=str(self._points)),
        )

    @property
    def _heads(self) -> Path:
        return self.folder / HEADS

    @property
    def _points(self) -> Path:
        return self.folder / "points" / POINTS_DB

    def _begin(self) -> None:
        """Write the settings of the round, or check that they are those with which it was begun."""
        if not self.config_path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.config_path) as temporary:
                temporary.write_text(yaml.safe_dump(dataclasses.asdict(self.cfg), allow_unicode=True), encoding="utf-8")
            return
        begun = deciding_settings(self._settings_of_file())
        own = {key: value for key, value in deciding_settings(dataclasses.asdict(self.cfg)).items() if key in begun}
        if changed := sorted(key for key in own if own[key] != begun[key]):
            raise StageError(
                f"{self.folder.name} was begun with another {', '.join(changed[:5])}: set it back "
                f"({changed[0]}={begun[changed[0]]}), or remove {relative_name(self.folder)} to begin the round anew"
            )

    def _settings_of_file(self) -> dict[str, Any]:
        """Return the sections of the settings with which the round was begun."""
        try:
            return {name: dict(values) for name, values in yaml.safe_load(self.config_path.read_text(encoding="utf-8")).items()}
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            name = relative_name(self.config_path)
            raise StageError(f"{name} is damaged ({first_line(error)}): remove its folder to begin the round anew") from error

    def _generate(self) -> dict[str, Any]:
        """Make the candidates and the sheets from which the controls are drawn."""
        settings = self.cfg.loop
        if settings.neighbours:  # first, because a wrong name ends the loop
            self._make_neighbours()
        self.tools.generate(self.config_path, self.folder / FOLDERS[CHOSEN], settings.candidates, True)
        if settings.controls:
            self.tools.generate(self.config_path, self.folder / FOLDERS[UNGUIDED], settings.control_candidates, False)
        if settings.random_controls:
            self._draw_random_decorations(settings.random_controls * RANDOM_PER_CONTROL)
        return {name: len(find_cifs(self.folder / folder)) for name, folder in self._sets().items()}

    def _sets(self) -> dict[str, str]:
        """Return the folder of CIFs of every set that the round has."""
        settings = self.cfg.loop
        asked = {CHOSEN: settings.batch, UNGUIDED: settings.controls, RANDOM: settings.random_controls}
        return {name: FOLDERS[name] for name, number in asked.items() if number}

    def _draw_random_decorations(self, number: int) -> None:
        """Copy some random decorations, drawn at random."""
        paths = find_cifs(self.cfg.evaluation.random_cif_dir)
        drawn = random.Random(f"{self.cfg.run.seed} {RANDOM}").sample(paths, min(number, len(paths)))
        with atomic_folder(self.folder / FOLDERS[RANDOM]) as new:
            for path in drawn:
                shutil.copyfile(path, new / path.name)

    def _make_neighbours(self) -> None:
        """Write the neighbours of sheets that DFT has found near zero; there are none where it has found none."""
        settings, limits = self.cfg.loop, self._limits(known_compositions(self.cfg) | self._chosen_before())
        path = Path(self.cfg.evaluation.dft_truth_path)
        points = read_truth(path) if path.is_file() else []
        parents = parents_of(points, settings.neighbours_of, self.cfg.dataset.her_correction_ev)
        wanted = frozenset(settings.neighbour_elements)

        def allowed(sheet: Atoms) -> bool:
            return not (wanted and set(sheet.symbols) - wanted) and not cost_fault(str(sheet.symbols), sheet, limits)

        found = neighbours(parents, settings.neighbours, allowed, limits.excluded)
        if found:
            with atomic_folder(self.folder / NEIGHBOURS) as new:
                write_neighbours(found, new)
        log.info("%d neighbours of %d sheets that DFT has computed", len(found), len(parents))

    def _limits(self, known: set[str]) -> Limits:
        """Return what sheets must keep to. known: compositions that DFT is not asked for."""
        settings, generation = self.cfg.loop, self.cfg.generation
        most_soluble = at_most(generation.max_soluble_share * settings.batch)
        return Limits(known, settings.max_dft_atoms, settings.max_per_family, most_soluble, frozenset(generation.exclude_elements))

    def _judge(self, drawn_as: str, limits: Limits) -> _Pool:
        """Judge a set, under its names in the databases of points; verdicts that are there are not asked again.

        To the sheets of this round come its neighbours of computed ones, those of ``loop.more_cif_dirs``, and those that earlier
        rounds had for their batches: what these did not choose may be worth it by what was learnt since. Sheets that DFT cannot be
        asked about are not judged.
        """
        middle = "" if drawn_as == CHOSEN else f"{FOLDERS[drawn_as]}-"
        judged = self.folder / "judged"
        pool = _Pool(limits)
        self._add(pool, f"r{self.number}-{middle}", self.folder / FOLDERS[drawn_as], judged / FOLDERS[drawn_as])
        if drawn_as != CHOSEN:
            return pool
        for number, folder in enumerate(map(Path, self.cfg.loop.more_cif_dirs), 1):
            before = [one.folder / "judged" / f"more_{number}" for one in self._earlier()]
            self._add(pool, f"f{number}-", folder, judged / f"more_{number}", before)
        for earlier in self._earlier():
            before = [earlier.folder / "judged" / FOLDERS[CHOSEN]]
            self._add(pool, f"r{earlier.number}-", earlier.folder / FOLDERS[CHOSEN], judged / earlier.folder.name, before)
        for one in (*self._earlier(), self):
            if (own := one.folder / NEIGHBOURS).is_dir():
                name = f"{NEIGHBOURS}_{one.number}"
                before = [earlier.folder / "judged" / name for earlier in self._earlier()]
                self._add(pool, f"n{one.number}-", own, judged / name, before)
        return pool

    def _add(self, pool: _Pool, prefix: str, cif_dir: Path, output_dir: Path, before: Sequence[Path] = ()) -> None:
        """Judge the CIFs of a folder that are worth it, and add them to a pool.

        Args:
            pool: of sheets.
            prefix: of their names in the pool.
            cif_dir: their folder.
            output_dir: where verdicts go.
            before: where those of earlier rounds are, whose answers to questions that nothing is learnt for still hold.
        """
        answers = [*self.cfg.evaluation.judged_before, *(str(folder / "cache") for folder in before)]
        cfg = dataclasses.replace(self.cfg, evaluation=dataclasses.replace(self.cfg.evaluation, judged_before=answers))
        paths, refused = worth_judging(find_cifs(cif_dir), pool.limits)
        pool.refused += refused
        if not paths:
            return
        with atomic_folder(output_dir / "cifs") as new:
            for path in paths:
                shutil.copyfile(path, new / path.name)
        rows, structures = self.tools.judge(cfg, output_dir / "cifs", output_dir, f"round {self.number}, {relative_name(cif_dir)}")
        for row in rows:
            name = f"{prefix}{row.id}"
            pool.rows.append(dataclasses.replace(row, id=name))
            pool.cifs[name] = cif_dir / row.source_file
            if row.id in structures:
                pool.structures[name] = structures[row.id]

    def _earlier(self) -> list[Round]:
        """Return the rounds of the loop before this one."""
        first = 1 + len(self.delivered.rounds if self.delivered else ())
        return [Round(k, self.folder.with_name(f"round_{k}"), self.cfg, self.tools) for k in range(first, self.number)]

    def _choose(self) -> dict[str, Any]:
        """Choose the batch, draw the controls, and write the log of choices and the sheets."""
        settings, evaluation = self.cfg.loop, self.cfg.evaluation
        known = known_compositions(self.cfg) | self._chosen_before()
        picks: dict[str, list[Pick]] = {}
        sheets: dict[str, Atoms] = {}
        cifs: dict[str, Path] = {}
        refused: Counter[str] = Counter()
        change = self._relaxation_change()
        for place, drawn_as in enumerate(self._sets()):
            taken = {composition_key(pick.row.formula) for own in picks.values() for pick in own}
            limits = self._limits(known | taken)
            pool = self._judge(drawn_as, limits)
            rng = np.random.default_rng([self.cfg.run.seed, place])
            if drawn_as == CHOSEN:
                picks[drawn_as], refused = choose_batch(
                    pool.rows, pool.structures, settings.batch, settings.explore_share, limits, evaluation, change
                )
                refused = refused + pool.refused
                picks[RANDOM_NEIGHBOUR] = self._draw_neighbours(pool, picks[drawn_as], rng)
            else:
                number = settings.controls if drawn_as == UNGUIDED else settings.random_controls
                picks[drawn_as] = draw_controls(pool.rows, pool.structures, number, limits, evaluation, rng)
            for pick in (*picks[drawn_as], *(picks[RANDOM_NEIGHBOUR] if drawn_as == CHOSEN else ())):
                sheets[pick.row.id], cifs[pick.row.id] = pool.structures[pick.row.id], pool.cifs[pick.row.id]
        is_neighbour = {name for name, path in cifs.items() if path.parent.name == NEIGHBOURS}
        choices = [
            Choice.of(NEIGHBOUR if name == CHOSEN and pick.row.id in is_neighbour else name, pick)
            for name, own in picks.items()
            for pick in own
        ]
        if not picks[CHOSEN]:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in sorted(refused.items(), key=lambda item: -item[1]))
            raise StageError(f"round_{self.number}: no sheet may be chosen: {reasons}; raise loop.candidates or loop.max_dft_atoms")
        with atomic_folder(self.folder / ASKED) as new:
            for name, path in cifs.items():
                shutil.copyfile(path, new / f"{name}.cif")
        write_json(
            self.folder / "choices.json",
            {
                "choices": [dataclasses.asdict(choice) for choice in choices],
                "left_out": dict(refused),
                "relaxation_change": change.as_dict(),
                "rows": {pick.row.id: dataclasses.asdict(pick.row) for own in picks.values() for pick in own},
                "sheets": {name: atoms_to_dict(atoms) for name, atoms in sheets.items()},
            },
        )
        print(loop_report.choices_table(choices), flush=True)
        return {name: len(own) for name, own in picks.items() if own} | {"left_out": dict(refused)}

    def _draw_neighbours(self, pool: _Pool, chosen: Sequence[Pick], rng: np.random.Generator) -> list[Pick]:
        """Draw ``loop.neighbour_controls`` neighbours at random among those of a pool that were not chosen."""
        rows = [row for row in pool.rows if pool.cifs[row.id].parent.name == NEIGHBOURS]
        limits = dataclasses.replace(pool.limits, known=pool.limits.known | {composition_key(pick.row.formula) for pick in chosen})
        return draw_controls(rows, pool.structures, self.cfg.loop.neighbour_controls, limits, self.cfg.evaluation, rng)

    def _relaxation_change(self) -> RelaxationChange:
        """Return how far minima of DFT lie from single points; nothing where they do not decide."""
        if not self.cfg.loop.relax_steps:
            return UNKNOWN_CHANGE
        correction = self.cfg.dataset.her_correction_ev
        before = self.delivered.change(correction) if self.delivered else UNKNOWN_CHANGE
        return relaxation_change(self.folder.parent / DESIGNS / "dft", correction, before)

    def _chosen_before(self) -> set[str]:
        """Return the compositions that earlier rounds have chosen or drawn, those without a DFT value too."""
        own = {composition_key(choice.formula) for earlier in self._earlier() for choice in earlier.choices()}
        return own | (self.delivered.compositions() if self.delivered else set())

    def _log_of_choices(self) -> dict[str, Any]:
        path = self.folder / "choices.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            again = f"remove {relative_name(self.folder / 'steps' / 'choose.json')} to choose again"
            raise StageError(f"{relative_name(path)} cannot be read ({first_line(error)}): {again}") from error

    def choices(self) -> list[Choice]:
        """Return the log of choices. Raises StageError where it cannot be read."""
        return [from_json(Choice, values) for values in self._log_of_choices()["choices"]]

    def _prepare(self) -> dict[str, Any]:
        """Relax H on the chosen sheets with the potential."""
        written = self._log_of_choices()
        rows = [dataclasses.replace(from_json(CandidateResult, values), id=name) for name, values in written["rows"].items()]
        self.tools.prepare(
            self.cfg, rows, {name: Atoms(**sheet) for name, sheet in written["sheets"].items()}, self.folder / "inputs"
        )
        return {"with_sites": sum(bool(sites) for sites in self._sites().values()), "asked": len(rows)}

    def _sites(self) -> dict[str, int | None]:
        """Return for every chosen sheet at how many sites DFT is asked; None where the relaxation of H failed altogether."""
        folders = {choice.name: self.folder / "inputs" / choice.name for choice in self.choices()}
        return {
            name: len(read_finalist(path)["sites"]) if (path / "finalist.json").is_file() else None
            for name, path in folders.items()
        }

    def _compute(self) -> dict[str, Any]:
        """Compute the points of the round."""
        inputs = {name: self.folder / "inputs" / name / "dft.extxyz" for name, sites in self._sites().items() if sites}
        if inputs:
            self.tools.compute(self.cfg, inputs, self.folder / "dft")
        return {"sheets": len(inputs), "points": len(self._own_points())}

    def _own_points(self) -> list[Any]:
        path = self.folder / "dft" / POINTS_DB
        return read_truth(path, with_unbound=True) if path.is_file() else []

    def _join(self) -> dict[str, Any]:
        """Put the points of the round beside those of the rounds before."""
        about = {
            choice.name: {"round": self.number, "drawn_as": choice.drawn_as, "family": choice.family} for choice in self.choices()
        }
        with atomic_folder(self._points.parent) as new:
            joined = join_points(Path(self.cfg.evaluation.dft_truth_path), self.folder / "dft" / POINTS_DB, new / POINTS_DB, about)
            if joined:
                self.tools.complete(self.cfg, new / POINTS_DB)
        return {"joined": joined}

    def _refit(self) -> dict[str, Any]:
        """Fit DimeNet++'s correction to all points so far."""
        settings = dataclasses.replace(self.cfg.dimenet, dft_path=str(self._points))
        self.tools.refit(
            dataclasses.replace(self.cfg, dimenet=settings), Path(self.cfg.dimenet.checkpoint), self.folder / "dimenet"
        )
        return {}

    def _teach(self) -> dict[str, Any]:
        """Label the database by what was learnt, and train the heads of the denoiser on it and on all that the round has judged."""
        judged = sorted(str(path.parent) for path in (self.folder / "judged").glob("*/metrics.csv"))
        learnt = self.learnt()
        overrides = {
            "run.seed": (self.cfg.run.seed - self.number + 1) % 2**32,  # of the loop, so that the split stays
            "dataset.judged_dirs": f"[{','.join([*self.cfg.dataset.judged_dirs, *judged])}]",
            "dimenet.checkpoint": learnt.dimenet.checkpoint,
            "evaluation.dft_truth_path": learnt.evaluation.dft_truth_path,
            "denoiser.init_from": self.cfg.denoiser.checkpoint,
        }
        self.tools.teach(self.config_path, [f"{name}={value}" for name, value in overrides.items()], self._heads.parent)
        return {"judged_sets": len(judged)}

    def _report(self) -> dict[str, Any]:
        """Write what DFT said, and the sidecar, which ends the round."""
        cfg, counts = self.cfg, {step: dict(self.steps[step]) for step in self.steps}
        outcomes = loop_report.outcomes_of(
            self.choices(), self._own_points(), self._sites(), cfg.evaluation, cfg.dataset.her_correction_ev
        )
        numbers = loop_report.summary(outcomes)
        write_json(self.folder / "results.json", {"sheets": loop_report.outcome_dicts(outcomes), **numbers})
        print(loop_report.rounds_table({f"round_{self.number}": numbers}), flush=True)
        inputs = [cfg.evaluation.dft_truth_path, cfg.dimenet.checkpoint, cfg.denoiser.checkpoint]
        inputs += [self.config_path, self.folder / "choices.json", self.folder / "dft" / POINTS_DB]
        write_sidecar(
            self.folder,
            stage=STAGE,
            seed=cfg.run.seed,
            settings=cfg.loop,
            inputs=[path for path in inputs if Path(path).is_file()],
            counts=counts,
            metrics=numbers,
        )
        return read_sidecar(self.folder, stage=STAGE)["metrics"]


def sidecar_path_of(folder: Path) -> Path:
    """Return the sidecar of a round, whether or not its folder is there."""
    return sidecar_path(folder) if folder.is_dir() else folder / "manifest.json"


def known_compositions(cfg: Config) -> set[str]:
    """Return the compositions (``composition_key``) that DFT has computed: those to learn from and those kept for a blind test.

    Raises:
        StageError: a database cannot be read.
    """
    paths = [path for path in (cfg.evaluation.dft_truth_path, cfg.evaluation.dft_blind_path) if path and Path(path).is_file()]
    return {composition_key(point.host) for path in paths for point in read_truth(path, with_unbound=True)}
