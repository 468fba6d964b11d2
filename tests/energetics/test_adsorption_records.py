"""H on the sheets of somebody's database: which are taken, and what is recorded of a host."""

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.db import connect

from crystals.prototypes import PROTOTYPES, honeycomb, trigonal_prismatic
from energetics import adsorption_records as records
from energetics.is2re_lmdb import open_is2re
from energetics.potentials import Potential
from energetics.relaxation import h2_energy
from energetics.sites import adsorption_sites
from geo_utils import H_TAG, primitive_sheet
from pipeline.errors import StageError
from pipeline.settings import DemoConfig


def emt():
    return Potential("emt", {"name": "emt"}, EMT())


def host_database(path):
    with connect(path) as db:
        for m in ("Mo", "W", "Nb"):
            db.write(trigonal_prismatic(m, "S"), uid=f"{m}S2", ehull=0.0)
        db.write(trigonal_prismatic("Mo", "S"), uid="MoS2-again", ehull=0.1)
        db.write(trigonal_prismatic("Ta", "Se"), uid="unstable", ehull=0.9)
        db.write(trigonal_prismatic("Ta", "Te"), uid="no-ehull")
        db.write(PROTOTYPES["MX3"].build("Cr", "I"), uid="too-many-atoms", ehull=0.0)
        hydride = trigonal_prismatic("Ti", "S")
        hydride.numbers[-1] = 1
        db.write(hydride, uid="with-H", ehull=0.0)
        db.write(PROTOTYPES["hBN"].build("B", "N"), uid="BN", ehull=0.0)


def demo(tmp_path, **values):
    return DemoConfig(host_db_path=str(tmp_path / "hosts.db"), work_dir=str(tmp_path / "work"), **values)


def test_hosts_are_stable_small_free_of_h_and_one_per_formula(tmp_path):
    host_database(tmp_path / "hosts.db")
    tasks = records.host_tasks(demo(tmp_path), 0, 9)
    chosen = {task["key"] for task in tasks}
    assert {"host:WS2", "host:NbS2", "host:BN"} < chosen and len(chosen & {"host:MoS2", "host:MoS2-again"}) == 1
    assert len(tasks) == 4
    assert tasks == records.host_tasks(demo(tmp_path), 0, 9)
    assert [task["key"] for task in records.host_tasks(demo(tmp_path), 0, 2)] == [task["key"] for task in tasks[:2]]


def test_a_missing_or_empty_database_is_named(tmp_path):
    with pytest.raises(StageError, match="hosts.db"):
        records.host_tasks(demo(tmp_path), 0, 9)
    (tmp_path / "hosts.db").write_text("no database")
    with pytest.raises(StageError, match="hosts.db is not a readable ASE database"):
        records.host_tasks(demo(tmp_path), 0, 9)
    (tmp_path / "hosts.db").unlink()
    with connect(tmp_path / "hosts.db") as db:
        db.write(trigonal_prismatic("Mo", "S"), ehull=2.0)
    with pytest.raises(StageError, match="no sheet of up to"):
        records.host_tasks(demo(tmp_path), 0, 9)


def test_a_host_gives_records_at_several_sites_and_coverages(tmp_path):
    sheet = honeycomb("C", "C")
    settings = demo(tmp_path, sites_per_host=3, max_steps=40, max_h_steps=5)
    results = [records.relax_host(emt(), settings, f"host:{k}", records.pack_atoms(sheet), [0, 7, k]) for k in range(4)]
    assert {result["status"] for result in results} == {"ok"}
    found = [record for result in results for record in result["records"]]
    assert len({record["key"] for record in found}) == len(found)
    assert len({record["coverage"] for record in found}) > 1, "coverages vary"
    for record in found:
        numbers, tags = np.array(record["atoms"]["numbers"]), np.array(record["tags"])
        assert (tags == H_TAG).sum() == 1 and numbers[tags == H_TAG] == [1]
        assert len(numbers) - 1 == pytest.approx(2 / record["coverage"])
        assert len(numbers) <= records.MAX_HOST_SUPERCELL + 1
        assert np.shape(record["pos_relaxed"]) == np.shape(record["atoms"]["positions"])
        assert np.isfinite([record["y_init"], record["y_relaxed"]]).all()
    sites = adsorption_sites(primitive_sheet(sheet))
    assert {record["site"] for record in found} <= {site.label(sheet) for site in sites}


def test_what_is_no_sheet_is_a_result_and_stops_nothing(tmp_path):
    chain = honeycomb("C", "C")
    chain.cell[1] = [0, 30, 0]
    result = records.relax_host(emt(), demo(tmp_path), "host:x", records.pack_atoms(chain), [0])
    assert result["records"] == [] and result["status"].startswith("not usable")


def test_the_records_of_hosts_become_an_lmdb(tmp_path):
    settings = demo(tmp_path, sites_per_host=2, max_steps=40, max_h_steps=3)
    result = records.relax_host(emt(), settings, "host:C2", records.pack_atoms(honeycomb("C", "C")), [0, 7, 0])
    path = tmp_path / "lmdb" / "data.lmdb"
    source = tmp_path / "hosts.db"
    host_database(source)
    counts = records.write_adsorption(str(path), settings, result["records"], 0, [str(source)])
    read = list(open_is2re(path))
    assert len(read) == counts["records"] == len(result["records"])
    for record, stored in zip(result["records"], read, strict=True):
        assert stored.y_relaxed == pytest.approx(record["y_relaxed"])
        np.testing.assert_allclose(stored.pos_relaxed, record["pos_relaxed"], atol=1e-4)
        assert stored.extra["converged"] == int(record["converged"])
    assert counts["not converged"] == sum(not r["converged"] for r in result["records"])


def test_snapshots_are_energies_of_the_geometries_given(tmp_path):
    from ase.calculators.emt import EMT

    settings = demo(tmp_path, snapshots_per_host=6)
    sheet = primitive_sheet(honeycomb("C", "C"))
    result = records.snapshot_host(emt(), settings, "host:C2", records.pack_atoms(sheet), [0, 8, 1])
    assert result["status"] == "ok" and len(result["records"]) >= 3

    def energy(atoms):
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    per_atom, half_h2 = energy(sheet.copy()) / len(sheet), 0.5 * h2_energy(emt())
    for record in result["records"]:
        slab = records.unpack_atoms(record["atoms"])
        assert record["y_relaxed"] == record["y_init"] and record["pos_relaxed"] == record["atoms"]["positions"]
        assert record["y_relaxed"] == pytest.approx(energy(slab) - per_atom * (len(slab) - 1) - half_h2, abs=1e-6)
        assert abs(record["y_relaxed"]) <= records.MAX_SNAPSHOT_EV
    assert len({record["y_relaxed"] for record in result["records"]}) == len(result["records"])
