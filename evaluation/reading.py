"""Finds users' structures and brings them into CIFs: CIF, POSCAR, XYZ with a cell and ASE databases, packed with gzip or not.

The judges read CIFs alone, so that the same crystal has the same result from every kind of file. A CIF is judged as it is. Each
structure of another file is written as a CIF of its own.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from crystals.cif import MAX_CIF_BYTES, UnreadableCif, cif_text
from crystals.database import check_ase_database
from pipeline.errors import StageError, first_line
from pipeline.files import atomic_path, relative_name

log = logging.getLogger("her2d")

CIF, POSCAR, XYZ, DATABASE = "CIF", "POSCAR", "XYZ", "ASE database"
SUFFIXES = {
    ".cif": CIF,
    ".vasp": POSCAR,
    ".poscar": POSCAR,
    ".contcar": POSCAR,
    ".extxyz": XYZ,
    ".xyz": XYZ,
    ".db": DATABASE,
}
READ = "CIF, POSCAR (POSCAR*, CONTCAR*, .vasp), .extxyz and .xyz with a cell, each also as .gz, and ASE databases (.db) are read"
MAX_BYTES = {CIF: MAX_CIF_BYTES, POSCAR: MAX_CIF_BYTES, XYZ: 1_000_000_000}  # unpacked
SIDE_VACUUM = 10.0  # Å on each side of a structure that is not periodic in one direction
MOST_NAMED = 5
ATOMIC_NUMBERS = range(1, 119)


@dataclass(frozen=True, eq=False)
class Source:
    """One structure of a user.

    ``file``: where it is from. ``stem``: what it is called where no other has this name. ``name``: what it is called otherwise.
    ``cif``: the CIF to judge, ``file`` itself or one made from it; None where there is none, and ``fault`` says why.
    """

    file: Path
    stem: str
    name: str
    cif: Path | None
    fault: str = ""


def cif_source(path: Path) -> Source:
    """Return the source of a CIF, which is judged as it is."""
    return Source(path, _text(path.stem), _text(path.name), path)


def find_structures(place: str | os.PathLike) -> list[Path]:
    """Return the files of structures directly inside a folder, sorted by name, or the one file that is named.

    Files of other kinds are named in the log.

    Raises:
        StageError: nothing is there that can be read.
    """
    place = Path(place)
    if place.is_file() and kind_of(place):
        return [place]
    if not place.is_dir():
        problem = (
            f"{relative_name(place)} is of no kind that is read"
            if place.is_file()
            else f"no folder of CIFs at {relative_name(place)}"
        )
        raise StageError(f"{problem}: {READ}")
    entries = sorted(place.iterdir(), key=lambda path: path.name)
    found = [path for path in entries if kind_of(path) == CIF or (kind_of(path) and path.is_file())]
    if not found:
        raise StageError(f"no structure in {relative_name(place)}: {READ}")
    others = [path.name for path in entries if path not in found and not path.name.startswith(".") and path.name != "manifest.json"]
    if others:
        rest = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        log.info("left aside, of no kind that is read: %s%s", ", ".join(map(repr, others[:MOST_NAMED])), rest)
    return found


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by its name, which may end in ``.gz``; None for one that is not read."""
    name = path.name.lower()
    is_packed = name.endswith(".gz")
    inner = Path(name.removesuffix(".gz"))
    kind = SUFFIXES.get(inner.suffix)
    if kind is None and inner.name.startswith(("poscar", "contcar")):
        kind = POSCAR
    return None if is_packed and kind == DATABASE else kind


def sources_of(files: Sequence[Path], folder: Path) -> list[Source]:
    """Return every structure of the files; those that are not in a CIF are written as CIFs to ``folder``.

    A file that cannot be read gives one source with a fault. An XYZ file whose structures all carry the id of a CIF beside it, as
    stage 4 writes them, is a copy and is left out.
    """
    plain = {path for path in files if kind_of(path) == CIF and not path.name.lower().endswith(".gz")}
    stems = {path.stem for path in plain}
    found: list[Source] = []
    for path in files:
        if path in plain:
            found.append(cif_source(path))
        elif stems and _holds_copies(path, stems):
            log.info("%s holds the same structures as the CIFs beside it and is left out", relative_name(path))
        else:
            found += _converted(path, folder)
    return found


def _converted(path: Path, folder: Path) -> Iterator[Source]:
    """Yield the structures of a file that is no plain CIF."""
    stem, name = _text(_stem(path)), _text(path.name)
    try:
        if kind_of(path) == CIF:
            yield Source(path, stem, name, _write(folder, _content(path, CIF)))
            return
        structures = list(_structures(path))
    except UnreadableCif as error:
        yield Source(path, stem, name, None, str(error))
        return
    is_single = len(structures) == 1 and kind_of(path) != DATABASE
    for number, atoms in structures:
        own = (stem, name) if is_single else (f"{stem}-{number}", f"{name}-{number}")
        try:
            yield Source(path, *own, _write(folder, crystal_text(atoms).encode()))
        except UnreadableCif as error:
            yield Source(path, *own, None, str(error))


def crystal_text(atoms: Atoms) -> str:
    """Return a structure as the text of a CIF.

    Where it is not periodic in exactly one direction, the cell gets vacuum along it.

    Raises:
        UnreadableCif: it has no atoms, no cell, an unknown element, or a number that is not finite.
    """
    atoms = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if not len(atoms):
        raise UnreadableCif("no atoms")
    if unknown := set(atoms.numbers.tolist()) - set(ATOMIC_NUMBERS):
        raise UnreadableCif(f"unknown element (atomic number {min(unknown)})")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise UnreadableCif("a coordinate or cell vector that is no finite number")
    open_axes = np.flatnonzero(~atoms.pbc)
    if len(open_axes) == 1 and np.linalg.matrix_rank(np.delete(atoms.cell.array, open_axes, axis=0)) == 2:
        atoms.center(vacuum=SIDE_VACUUM, axis=int(open_axes[0]))
    if atoms.cell.rank < 3:
        raise UnreadableCif("no unit cell")
    return cif_text(atoms, "structure")


def _structures(path: Path) -> Iterator[tuple[int, Atoms]]:
    """Yield (number, structure) of a file, numbers from 1 or those of the rows. Raises UnreadableCif where it cannot be read."""
    from ase.io import iread

    kind = kind_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind == DATABASE:
                yield from _rows_of(path)
            elif kind == POSCAR:
                yield 1, _read_poscar(_decoded(path, kind))
            else:
                yield from enumerate(iread(io.StringIO(_decoded(path, kind)), index=":", format="extxyz"), 1)
        except (UnreadableCif, StageError) as error:
            raise UnreadableCif(str(error)) from error
        except Exception as error:  # ASE's readers raise many unrelated types for malformed files
            raise UnreadableCif(f"no readable {kind} ({first_line(error)[:100]})") from error


def _rows_of(path: Path) -> Iterator[tuple[int, Atoms]]:
    """Yield (id, structure) of the rows of an ASE database."""
    from ase.db import connect

    check_ase_database(path)
    for row in connect(path).select():
        yield row.id, row.toatoms()


def _read_poscar(text: str) -> Atoms:
    """Read a POSCAR with element names. Without them ASE would guess from other files."""
    from ase.io.vasp import read_vasp

    lines = text.splitlines()
    if len(lines) < 8 or not lines[5].strip()[:1].isalpha():
        raise UnreadableCif("no readable POSCAR (the sixth line names no elements)")
    return read_vasp(io.StringIO(text))


def _holds_copies(path: Path, stems: set[str]) -> bool:
    """Tell whether a file is XYZ and each of its structures has the id of one of the CIFs."""
    if kind_of(path) != XYZ:
        return False
    try:
        return all(atoms.info.get("id") in stems for _, atoms in _structures(path))
    except UnreadableCif:
        return False


def _decoded(path: Path, kind: str) -> str:
    return _content(path, kind).decode("utf-8-sig", errors="replace")


def _content(path: Path, kind: str) -> bytes:
    """Return the bytes of a file, unpacked where it is packed. Raises UnreadableCif for one that is too large or damaged."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
            content = handle.read(MAX_BYTES[kind] + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableCif("not readable as a gzip file") from error
    except OSError as error:
        raise UnreadableCif(f"cannot be opened ({error.strerror or type(error).__name__})") from error
    if len(content) > MAX_BYTES[kind]:
        raise UnreadableCif(f"larger than {MAX_BYTES[kind] // 1_000_000} MB")
    if not content.strip():
        raise UnreadableCif("empty file")
    return content


def _write(folder: Path, content: bytes) -> Path:
    """Write a CIF named by its content, and return its path."""
    path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.cif"
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return path


def _stem(path: Path) -> str:
    """Return the name of a file without ``.gz`` and without the suffix of its kind; that of POSCAR_MoS2 or POSCAR.1 is the name."""
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    inner = Path(name)
    return inner.stem if inner.suffix.lower() in SUFFIXES else name


def _text(name: str) -> str:
    """Return a file name as text; bytes that are no UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")
