"""Finds the one crystal in the text of a CIF, with its tags and reserved words as the standard writes them.

In a CIF, tags and the words ``data_`` and ``loop_`` may be in any case, and a text field (lines between two semicolons) may hold
anything, such as a line that begins with ``data_``. Parsers that search the plain text fall for both.
"""

from __future__ import annotations

import re
from pathlib import Path

MAX_CIF_BYTES = 5_000_000
MAX_LINE = 2048  # characters, the limit of the CIF standard

_TOKEN = re.compile(r"""(?<!\S)(?:'.*?'(?!\S)|".*?"(?!\S)|\#.*|\S+)""")
_RESERVED = re.compile(r"(data_|save_|loop_$|global_$|stop_$)", re.IGNORECASE)
_DOTTED = re.compile(r"_(cell|atom_site|atom_type|symmetry|symmetry_equiv|space_group|space_group_symop|chemical_formula)\.")
_CAPITALS = {
    tag.lower(): tag
    for tag in (
        "_symmetry_space_group_name_H-M",
        "_symmetry_space_group_name_H-M_full",
        "_symmetry_space_group_name_Hall",
        "_symmetry_Int_Tables_number",
        "_space_group_name_H-M_alt",
        "_space_group_name_H-M_full",
        "_space_group_name_H-M_ref",
        "_space_group_name_Hall",
        "_space_group_IT_number",
        "_space_group_IT_coordinate_system_code",
        "_cell_formula_units_Z",
        "_atom_site_Cartn_x",
        "_atom_site_Cartn_y",
        "_atom_site_Cartn_z",
    )
}


class UnreadableCif(ValueError):
    """The file does not hold one ordered, finite crystal; the message says why in a few words."""


def crystal_block(path: Path) -> str:
    """Return the one data block of a CIF that holds a cell, as ASCII text with canonical tags and without text fields.

    Raises:
        UnreadableCif: the file cannot be opened, is empty, binary or too large, or has no such block or several.
    """
    lines = _plain_lines(_ascii_text(path))
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith("data_")]
    if not starts:
        raise UnreadableCif("no CIF data block")
    blocks = ["\n".join(lines[start:end]) for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    crystals = [block for block in blocks if re.search(r"(?<!\S)_cell_length_[abc](?!\S)", block)]
    if not crystals:
        raise UnreadableCif("no unit cell")
    if len(crystals) > 1:
        raise UnreadableCif(f"{len(crystals)} structures in one file")
    if "_atom_site_" not in crystals[0]:
        raise UnreadableCif("no atoms")
    return crystals[0].lstrip() + "\n"


def _ascii_text(path: Path) -> str:
    """Return the text of a file, with a question mark for every character that is not ASCII."""
    try:
        if not path.is_file():
            raise UnreadableCif("not a regular file")
        if path.stat().st_size > MAX_CIF_BYTES:
            raise UnreadableCif(f"larger than {MAX_CIF_BYTES // 1_000_000} MB")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableCif(f"cannot be opened ({error.strerror or type(error).__name__})") from error
    if not content.strip():
        raise UnreadableCif("empty file")
    if b"\0" in content:
        raise UnreadableCif("binary file, not text")
    # pymatgen deletes characters that are not ASCII, which can turn a number or a symbol into another one. A question mark in their
    # place is neither a number nor an element, so that such a file is refused.
    return re.sub(r"[^\x00-\x7f]", "?", content.decode("utf-8-sig", errors="replace"))


def _plain_lines(text: str) -> list[str]:
    """Return the lines of a CIF with tags and reserved words in their usual case, and each text field as one quoted value."""
    lines: list[str] = []
    field: list[str] | None = None
    for line in re.split(r"\r\n|\r|\n", text):
        if len(line) > MAX_LINE:
            raise UnreadableCif(f"a line longer than {MAX_LINE} characters")
        if field is None and line.startswith(";"):
            field = [line[1:]]
        elif field is None:
            lines.append(_TOKEN.sub(_canonical, line))
        elif line.startswith(";"):
            words = " ".join(" ".join(field).replace("'", " ").replace('"', " ").split())
            lines.append(f"'{words[:MAX_LINE]}'" if words else "?")
            lines.append(_TOKEN.sub(_canonical, line[1:]))
            field = None
        else:
            field.append(line)
    if field is not None:
        raise UnreadableCif("not a readable CIF (a text field that does not end)")
    return lines


def _canonical(match: re.Match[str]) -> str:
    """Return a word of a CIF, a tag or reserved word in its usual case; values, quotes and comments as they are."""
    word = match.group()
    if word.startswith("_"):
        tag = word.lower()
        tag = _DOTTED.sub(r"_\1_", tag, count=1)
        return _CAPITALS.get(tag, tag)
    if reserved := _RESERVED.match(word):
        return reserved.group().lower() + word[reserved.end() :]
    return word
