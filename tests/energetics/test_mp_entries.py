"""Materials Project entries: their structures compete on the potential's hull, their energies never do."""

import gzip
import json
from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from monty.serialization import dumpfn
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from energetics import embedded_data, mp_entries
from energetics import embedded_data as stage0
from energetics.hull import ReferencePhase, References
from energetics.potentials import Potential
from pipeline.errors import StageError
from pipeline.loading import load_config
from pipeline.settings import RunConfig
from pipeline.store import LineStore

NONSENSE = -999.0  # an energy that must never reach a hull


def ordered_alloy(first="Cu", second="Pt", a=2.75, c=3.6):
    return Structure(Lattice.tetragonal(a, c), [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]])


def entries():
    return [
        ComputedStructureEntry(ordered_alloy(), NONSENSE, entry_id="mp-12086"),
        ComputedStructureEntry(ordered_alloy("Cu", "Pd", 2.7, 3.4), NONSENSE, entry_id="mp-1018029"),
        ComputedStructureEntry(ordered_alloy("Cu", "Ag"), NONSENSE, entry_id="mp-12086"),
        ComputedEntry(Composition("CuPt3"), NONSENSE, entry_id="mp-2258"),
        ComputedStructureEntry(
            Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Pt": 0.5}], [[0, 0, 0]]), NONSENSE, entry_id="mp-disordered"
        ),
    ]


def test_structures_are_read_and_the_rest_is_counted_by_reason(tmp_path, caplog):
    dumpfn(entries(), tmp_path / "mp.json.gz")
    with caplog.at_level("WARNING", logger="her2d"):
        found, left_out = mp_entries.read_entries(tmp_path / "mp.json.gz")
    assert [(name, atoms.get_chemical_formula()) for name, atoms in found] == [("mp-1018029", "CuPd"), ("mp-12086", "CuPt")]
    assert all(atoms.pbc.all() for _, atoms in found)
    assert left_out == {"no structure": 1, "disordered structure": 1, "id given twice": 1}
    (line,) = [record.getMessage() for record in caplog.records]
    assert "1 of 5 entries have no structure" in line and "energies of the Materials Project cannot stand beside" in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no json", "is not readable JSON"),
        (b'{"entries": []}', "is no list of entries"),
        (b'["mp-1"]', "is no list of entries"),
        (b"[]", "no entry that can be used \\(it is empty\\)"),
        (
            json.dumps([{"entry_id": "a", "energy": -1.0, "composition": {"Cu": 1}}]).encode(),
            "1 no structure.*ComputedStructureEntry",
        ),
        (b'[{"structure": {"@module": "os", "@class": "system"}}]', "1 unreadable structure"),
    ],
)
def test_files_of_another_kind_end_in_one_line(tmp_path, content, expected):
    path = tmp_path / "mp.json"
    path.write_bytes(content)
    with pytest.raises(StageError, match=expected):
        mp_entries.read_entries(path)
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(content * 50)[:-10])
    with pytest.raises(StageError, match="not readable JSON"):
        mp_entries.read_entries(tmp_path / "cut.json.gz")
    with pytest.raises(StageError, match=r"no file at .*none\.json"):
        mp_entries.read_entries(tmp_path / "none.json")


@pytest.fixture
def emt(monkeypatch):
    """The effective-medium potential in place of the neural one, in this process; counts the relaxations."""
    potential = Potential("sevennet-0", {"name": "emt", "sha256": "0"}, EMT())
    relaxed = []

    def inline(name, function, tasks, settings, scheduling):
        store = LineStore(Path(settings.work_dir) / f"{name}.jsonl")
        for task in tasks:
            if task["key"] not in store:
                store.add(task["key"], function(potential, settings, **task))
                relaxed.append(task["key"])
        return [store[task["key"]] for task in tasks]

    monkeypatch.setattr(embedded_data, "relax_all", inline)
    monkeypatch.setattr(stage0, "load_potential", lambda *_: potential)
    return potential, relaxed


def test_entries_join_the_references_with_energies_of_the_potential(tmp_path, emt, caplog):
    potential, relaxed = emt
    phases = []
    for element in ("Cu", "Pt"):
        atoms = bulk(element, "fcc")
        atoms.calc = potential.calculator
        phases.append(ReferencePhase(element, atoms.get_potential_energy(), "fcc"))
    path = tmp_path / "references.json.gz"
    References(potential.identity, phases).save(path)
    dumpfn(entries(), tmp_path / "mp.json")
    cfg = load_config(
        None,
        [
            "demo.parts=[references]",
            f"demo.references_path={path}",
            f"demo.db_path={tmp_path / 'none.db'}",
            f"demo.work_dir={tmp_path / 'work'}",
            f"demo.mp_entries_path={tmp_path / 'mp.json'}",
        ],
    )
    with caplog.at_level("WARNING", logger="her2d"):
        stage0.build_parts(cfg)
    references = References.load(path, potential)
    alloy = next(phase for phase in references.phases if phase.prototype == "MP mp-12086")
    assert alloy.formula == "CuPt" and abs(alloy.energy_per_atom) < 5, "the energy of the entry itself is never used"
    assert {phase.formula for phase in phases} <= {phase.formula for phase in references.phases}, "what was there stays"
    assert References(potential.identity, phases).hull_energy("CuPt") == pytest.approx(0.0)
    assert references.hull_energy("CuPt") == pytest.approx(-0.118, abs=0.01), "formation energy of ordered CuPt in EMT"
    assert "no elemental reference for Pd" in caplog.text
    assert references.elements == {"Cu", "Pt"}
    first, count = path.read_bytes(), len(relaxed)
    assert any(key.startswith("mp:mp-12086:") for key in relaxed)
    stage0.build_parts(cfg)
    assert len(relaxed) == count, "a second run finds everything done"
    assert path.read_bytes() == first


def test_an_entry_that_the_potential_does_not_know_is_a_status(tmp_path, emt):
    potential, _ = emt
    dumpfn([ComputedStructureEntry(ordered_alloy("Cu", "Te"), NONSENSE, entry_id="mp-1")], tmp_path / "mp.json")
    settings = load_config(None, [f"demo.work_dir={tmp_path}", f"demo.mp_entries_path={tmp_path / 'mp.json'}"]).demo
    phases, counts = stage0.entry_phases(settings, RunConfig())
    assert phases == [] and counts["MP phases"] == 0 and counts["MP status: exploded"] == 1
