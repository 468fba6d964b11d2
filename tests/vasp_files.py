"""vasprun.xml and OUTCAR as VASP writes them, with the parts that say what was computed and with which energy."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from ase import Atoms


def _rows(values: np.ndarray) -> str:
    return "".join(f"    <v> {a:.8f} {b:.8f} {c:.8f} </v>\n" for a, b, c in values)


def vasprun(atoms: Atoms, energy: float, steps: int = 12, nelm: int = 60) -> str:
    """Return a vasprun.xml of a single point. energy: extrapolated to zero smearing, eV. steps: electronic ones."""
    species = "".join(f"<rc><c>{symbol} </c><c> 1</c></rc>\n" for symbol in atoms.symbols)
    cell, places = _rows(atoms.cell.array), _rows(atoms.get_scaled_positions(wrap=False))
    crystal = f'<crystal><varray name="basis">\n{cell}</varray></crystal><varray name="positions">\n{places}</varray>'
    scf = '<scstep><energy><i name="e_fr_energy">{0:.8f}</i><i name="e_0_energy">{1:.8f}</i></energy></scstep>\n'
    inner = "".join(scf.format(energy - 0.01 + k, energy + k) for k in reversed(range(steps)))
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
<kpoints><varray name="kpointlist"><v> 0.0 0.0 0.0 </v></varray><varray name="weights"><v> 1.0 </v></varray></kpoints>
<parameters><i type="int" name="NELM"> {nelm} </i><i name="PSTRESS"> 0.0 </i></parameters>
<atominfo><array name="atoms"><set>
{species}</set></array></atominfo>
<structure name="initialpos">{crystal}</structure>
<calculation>
{inner}<structure>{crystal}</structure>
<varray name="forces">
{_rows(np.zeros((len(atoms), 3)))}</varray>
<energy><i name="e_fr_energy">{energy - 0.01:.8f}</i><i name="e_0_energy">{energy:.8f}</i></energy>
</calculation>
</modeling>
"""


def outcar(atoms: Atoms, energy: float, converged: bool = True) -> str:
    """Return an OUTCAR of a single point. energy: extrapolated to zero smearing, eV."""
    groups = [(symbol, len(list(same))) for symbol, same in groupby(atoms.get_chemical_symbols())]
    potentials = "".join(f" POTCAR:    PAW_PBE {symbol} 06Sep2000\n" for symbol, _ in groups)
    cell = "".join("  " + "  ".join(f"{x:.9f}" for x in [*row, *row]) + "\n" for row in atoms.cell.array)
    places = "".join("  " + "  ".join(f"{x:.5f}" for x in [*row, 0, 0, 0]) + "\n" for row in atoms.positions)
    reached = "------------------------ aborting loop because EDIFF is reached ----------------------------------------\n"
    return f""" vasp.6.3.0 20Jan22
{potentials}{potentials}   ions per type =            {"   ".join(str(n) for _, n in groups)}
   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=      8
   ISPIN  =      2    spin polarized calculation?
 k-points in reciprocal lattice and weights: K-Points
   0.00000000  0.00000000  0.00000000       1.000
----------------------------------------- Iteration    1(  12)  ---------------------------------------
{reached if converged else ""}  E-fermi :  -1.0000     XC(G=0):  -2.0     alpha+bet : -1.0
      direct lattice vectors                 reciprocal lattice vectors
{cell}
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
{places} -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =        {energy - 0.01:.8f} eV

  energy  without entropy=       {energy + 0.01:.8f}  energy(sigma->0) =       {energy:.8f}
"""
