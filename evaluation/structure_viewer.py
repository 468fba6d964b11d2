"""A 3D view of the candidates inside one page: plain JavaScript on a canvas, no library, no network.

``encode`` turns a structure into short strings for ``report.json``; ``page_data`` turns those into the JSON that the page embeds,
bonds included; ``MARKUP``, ``STYLE`` and ``SCRIPT`` draw it. Spheres and half-bonds are sorted by depth and fade with it.

The page must hold one table row with ``data-i="k"`` per candidate k of ``page_data``: a click on it shows that candidate. The body
carries ``data-viewer`` ("drawn", "empty" or "error: ...") and ``data-shown`` (the id) after every drawing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list
from pymatgen.core import Element

# Tighter than the scale that decides whether a sheet hangs together: a picture of every contact is a picture of none.
DRAWN_BOND_SCALE = 1.15


def drawn_bonds(numbers: np.ndarray, first: np.ndarray, second: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Which pairs are drawn as bonds. numbers: (N,); first, second: (P,) atom indices; distances: (P,) Å. Returns (P,) bool.

    Drawn is a pair closer than 1.15 times the sum of the covalent radii. Two metals are joined in elements and alloys only: beside
    a non-metal their contacts would hide the coordination polyhedra.
    """
    radii = covalent_radii[numbers]
    metallic = np.array([Element.from_Z(int(z)).is_metal for z in numbers], dtype=bool)
    close = distances < DRAWN_BOND_SCALE * (radii[first] + radii[second])
    return close if metallic.all() else close & ~(metallic[first] & metallic[second])


def ball_radii(numbers: np.ndarray) -> np.ndarray:
    """Radii (Å) at which atoms are drawn: small enough to leave the bonds visible. numbers: (N,). Returns (N,)."""
    return 0.42 * covalent_radii[numbers] + 0.12


def hex_color(number: int) -> str:
    """Jmol's colour of an element as #rrggbb."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in jmol_colors[number])


def periodic_bonds(atoms: Atoms) -> list[list[int]]:
    """Every drawn bond once as [i, j, Sa, Sb, Sc]: from atom i to the image of atom j shifted by Sa a + Sb b + Sc c."""
    cutoff = 2 * DRAWN_BOND_SCALE * float(covalent_radii[atoms.numbers].max())
    first, second, distances, shifts = neighbor_list("ijdS", atoms, cutoff)
    keep = drawn_bonds(atoms.numbers, first, second, distances)
    bonds = zip(first[keep].tolist(), second[keep].tolist(), shifts[keep].tolist(), strict=True)
    return sorted([i, j, *shift] for i, j, shift in bonds if i < j or (i == j and shift > [0, 0, 0]))


def encode(atoms: Atoms) -> dict[str, str]:
    """A structure as four short strings, lengths in Å with three decimals; cell: nine numbers, row vectors."""
    return {
        "symbols": " ".join(atoms.get_chemical_symbols()),
        "pbc": "".join("T" if periodic else "F" for periodic in atoms.pbc),
        "cell": " ".join(f"{value:.3f}" for value in atoms.cell.array.ravel()),
        "positions": " ".join(f"{value:.3f}" for value in atoms.positions.ravel()),
    }


def decode(stored: Mapping[str, str]) -> Atoms:
    """The structure that ``encode`` stored."""
    return Atoms(
        stored["symbols"].split(),
        positions=np.array(stored["positions"].split(), dtype=float).reshape(-1, 3),
        cell=np.array(stored["cell"].split(), dtype=float).reshape(3, 3),
        pbc=[letter == "T" for letter in stored["pbc"]],
    )


def view(stored: Mapping[str, str]) -> dict[str, Any]:
    """What the page draws: symbols, bonds, flat positions and cell (Å). Atoms lie inside the cell, a sheet's mid-plane at z = 0."""
    atoms = decode(stored)
    atoms.wrap(eps=1e-3)
    sheet = not atoms.pbc[2]
    if sheet:
        atoms.positions[:, 2] -= 0.5 * (atoms.positions[:, 2].max() + atoms.positions[:, 2].min())
    return {
        "symbols": atoms.get_chemical_symbols(),
        "xyz": [round(value, 3) for value in atoms.positions.ravel().tolist()],
        "cell": [round(value, 3) for value in atoms.cell.array.ravel().tolist()],
        "bonds": periodic_bonds(atoms),
        "sheet": sheet,
    }


def script_json(content: Any) -> str:
    """JSON that is safe inside ``<script type="application/json">``: no character of it can end or open an element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(candidates: Sequence[Mapping[str, Any]]) -> str:
    """The JSON of the page. candidates: {id, href (CIF), facts: [[name, value], ...], structure: ``encode`` or None, note}."""
    drawn = [{**c, "structure": view(c["structure"]) if c["structure"] else None} for c in candidates]
    symbols = sorted({symbol for c in drawn if c["structure"] for symbol in c["structure"]["symbols"]})
    numbers = np.array([Element(symbol).Z for symbol in symbols], dtype=int)
    radii = ball_radii(numbers)
    elements = {s: [hex_color(z), round(float(r), 3)] for s, z, r in zip(symbols, numbers, radii, strict=True)}
    return script_json({"elements": elements, "candidates": drawn})


MARKUP = """<div class=viewer><canvas id=view tabindex=0 aria-label="structure of the selected candidate"></canvas><div>
<h3 id=view-id></h3><div id=view-legend></div><dl id=view-facts></dl><p><a id=view-cif>CIF</a></p>
<p><button type=button id=view-top>top</button> <button type=button id=view-side>side</button>
<button type=button id=view-tilt>tilted</button></p>
<p><label><input type=checkbox id=view-doubled checked> 2 × 2 cells</label>
<label><input type=checkbox id=view-vacuum> whole vacuum</label></p>
<p class=hint>Drag to rotate, wheel to zoom, double click to reset. The cell is drawn as high as the sheet unless the whole vacuum
is asked for. In compounds, contacts between metals are not drawn.</p></div></div>"""

STYLE = """.viewer{display:flex;flex-wrap:wrap;gap:1.2em;margin:1em 0}
.viewer canvas{width:100%;max-width:680px;flex:1 1 420px;height:460px}
.viewer canvas{border:1px solid #ccc;background:#fff;cursor:grab;touch-action:none}
.viewer>div{flex:1 1 260px}.viewer h3{margin:0 0 .4em;overflow-wrap:anywhere}
.viewer dl{display:grid;grid-template-columns:auto 1fr;gap:.15em .9em;font-size:.9em;margin:.8em 0}.viewer dd{margin:0}
.viewer dt{color:#555}.viewer .hint{color:#555;font-size:.85em}.viewer label{margin-right:1em}
#view-legend span{display:inline-block;margin-right:.9em}
#view-legend i{display:inline-block;width:.9em;height:.9em;border:1px solid #333;border-radius:50%}
#view-legend i{margin-right:.3em;vertical-align:-.1em}"""

SCRIPT = """(function () {
"use strict";
const data = JSON.parse(document.getElementById("structures").textContent);
const find = name => document.getElementById("view-" + name);
const canvas = document.getElementById("view"), context = canvas.getContext("2d");
const rows = Array.from(document.querySelectorAll("tr[data-i]"));
const TOP = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], SIDE = [[1, 0, 0], [0, 0, 1], [0, -1, 0]];
const TILTED = turn(turn(TOP, 0.3, 1, 0), -1.05, 2, 1);
// fit: pixels per Å at which everything is inside the canvas; found anew when something else is shown, kept while turning.
let current = data.candidates[0], rotation = TILTED, zoom = 1, fit = 0;

// A rotation by an angle (radians) in the plane of two screen axes, applied after what was there.
function turn(matrix, angle, a, b) {
  const c = Math.cos(angle), s = Math.sin(angle), out = matrix.map(row => row.slice());
  for (let k = 0; k < 3; k++) {
    out[a][k] = c * matrix[a][k] + s * matrix[b][k];
    out[b][k] = c * matrix[b][k] - s * matrix[a][k];
  }
  return out;
}
const along = (p, q, t) => p.map((x, k) => x + t * (q[k] - x));
const plus = (p, v, t) => p.map((x, k) => x + t * v[k]);

// Colours fade to white with depth (fade) and are lightened or darkened for light and shade.
function mix(hex, target, amount, fade) {
  const out = [1, 3, 5].map(at => {
    const channel = parseInt(hex.slice(at, at + 2), 16);
    const lit = channel + amount * (target - channel);
    return Math.round(lit + fade * (255 - lit));
  });
  return "rgb(" + out.join(",") + ")";
}

// Balls, half-bonds and pieces of cell edges of the cells shown, in Å.
function build(structure) {
  const vectors = [0, 3, 6].map(at => structure.cell.slice(at, at + 3));
  const atoms = structure.symbols.map((_, i) => structure.xyz.slice(3 * i, 3 * i + 3));
  const n = find("doubled").checked ? 2 : 1, balls = [], sticks = [], edges = [];
  // Half a bond, from the surface of its atom on: what points to the viewer must not cross its own ball.
  const stick = (p, q, symbol) => {
    const start = 0.9 * data.elements[symbol][1] / Math.hypot(...plus(q, p, -1));
    if (start < 0.5) sticks.push({p: along(p, q, start), q: along(p, q, 0.5), symbol});
  };
  let third = vectors[2], corner = [0, 0, 0];
  if (structure.sheet) {
    const reach = Math.max(...atoms.map(p => Math.abs(p[2]))) + 0.8;
    if (!find("vacuum").checked) third = [0, 0, 2 * reach];
    corner = third.map(x => -x / 2);
  }
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
    const shift = plus(plus([0, 0, 0], vectors[0], a), vectors[1], b), place = p => plus(p, shift, 1);
    atoms.forEach((p, i) => balls.push({p: place(p), symbol: structure.symbols[i]}));
    for (const [i, j, sa, sb, sc] of structure.bonds) {
      const image = (p, sign) => plus(plus(plus(p, vectors[0], sign * sa), vectors[1], sign * sb), vectors[2], sign * sc);
      stick(place(atoms[i]), place(image(atoms[j], 1)), structure.symbols[i]);
      stick(place(atoms[j]), place(image(atoms[i], -1)), structure.symbols[j]);
    }
    const box = [vectors[0], vectors[1], third];
    for (let k = 0; k < 3; k++) for (let m = 0; m < 4; m++) {
      const [u, v] = [box[(k + 1) % 3], box[(k + 2) % 3]];
      const start = plus(plus(place(corner), u, m & 1), v, m >> 1), end = plus(start, box[k], 1);
      for (let s = 0; s < 8; s++) edges.push({p: along(start, end, s / 8), q: along(start, end, (s + 1) / 8)});
    }
  }
  return {balls, sticks, edges};
}

function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!current.structure) {
    context.fillStyle = "#555";
    context.font = "15px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText("no structure: " + (current.note || "none was stored"), width / 2, height / 2, width - 20);
    return "empty";
  }
  const {balls, sticks, edges} = build(current.structure);
  const center = [0, 1, 2].map(k => balls.reduce((sum, ball) => sum + ball.p[k], 0) / balls.length);
  const turned = p => {
    const d = plus(p, center, -1);
    return rotation.map(row => row[0] * d[0] + row[1] * d[1] + row[2] * d[2]);
  };
  if (!fit) {
    const corners = balls.concat(edges).map(item => turned(item.p)), margin = 1;
    const half = axis => Math.max(...corners.map(r => Math.abs(r[axis]))) + margin;
    fit = Math.min(width / 2 / half(0), height / 2 / half(1));
  }
  const scale = zoom * fit;
  const project = p => {
    const r = turned(p);
    return [width / 2 + scale * r[0], height / 2 - scale * r[1], r[2]];
  };
  const depths = balls.map(ball => project(ball.p)[2]), near = Math.max(...depths), far = Math.min(...depths);
  const fade = z => Math.min(1, Math.max(0, (near - z) / Math.max(near - far, 4))) * 0.5;
  const line = (a, b, thickness, colour) => {
    context.lineWidth = thickness;
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(a[0], a[1]);
    context.lineTo(b[0], b[1]);
    context.stroke();
  };
  const items = balls.map(ball => {
    const [x, y, z] = project(ball.p), [hex, size] = data.elements[ball.symbol], r = size * scale;
    return {z, paint: () => {
      const light = context.createRadialGradient(x - 0.35 * r, y - 0.35 * r, 0.1 * r, x, y, r);
      light.addColorStop(0, mix(hex, 255, 0.65, fade(z)));
      light.addColorStop(0.5, mix(hex, 0, 0, fade(z)));
      light.addColorStop(1, mix(hex, 0, 0.4, fade(z)));
      context.beginPath();
      context.arc(x, y, r, 0, 2 * Math.PI);
      context.fillStyle = light;
      context.fill();
      context.lineWidth = 0.7;
      context.strokeStyle = mix("#222222", 0, 0, fade(z));
      context.stroke();
    }};
  });
  for (const {p, q, symbol} of sticks) {
    const a = project(p), b = project(q), z = (a[2] + b[2]) / 2, hex = data.elements[symbol][0];
    items.push({z, paint: () => {
      line(a, b, 0.24 * scale + 1.4, mix("#222222", 0, 0, fade(z)));
      line(a, b, 0.24 * scale, mix(hex, 0, 0.12, fade(z)));
    }});
  }
  for (const {p, q} of edges) {
    const a = project(p), b = project(q), z = (a[2] + b[2]) / 2;
    items.push({z, paint: () => line(a, b, 1.2, mix("#1a1a1a", 0, 0, fade(z)))});
  }
  items.sort((one, other) => one.z - other.z).forEach(item => item.paint());
  return "drawn";
}

function refit() {
  fit = 0;
  redraw();
}

function redraw() {
  try {
    document.body.dataset.viewer = draw();
  } catch (problem) {
    document.body.dataset.viewer = "error: " + problem.message;
  }
  document.body.dataset.shown = current.id;
}

function show(index) {
  current = data.candidates[index];
  rows.forEach(row => row.classList.toggle("shown", Number(row.dataset.i) === index));
  find("id").textContent = current.id;
  find("cif").href = current.href;
  const facts = find("facts"), legend = find("legend");
  facts.replaceChildren();
  legend.replaceChildren();
  for (const [name, value] of current.facts) {
    facts.appendChild(document.createElement("dt")).textContent = name;
    facts.appendChild(document.createElement("dd")).textContent = value;
  }
  for (const symbol of new Set(current.structure ? current.structure.symbols : [])) {
    const entry = legend.appendChild(document.createElement("span"));
    entry.appendChild(document.createElement("i")).style.background = data.elements[symbol][0];
    entry.append(symbol);
  }
  refit();
}

function look(matrix) {
  rotation = matrix;
  zoom = 1;
  refit();
}

canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", event => {
  if (!event.buttons) return;
  rotation = turn(turn(rotation, 0.01 * event.movementX, 0, 2), 0.01 * event.movementY, 2, 1);
  redraw();
});
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoom = Math.min(20, Math.max(0.2, zoom * Math.exp(-0.0015 * event.deltaY)));
  redraw();
}, {passive: false});
canvas.addEventListener("dblclick", () => look(TILTED));
find("top").addEventListener("click", () => look(TOP));
find("side").addEventListener("click", () => look(SIDE));
find("tilt").addEventListener("click", () => look(TILTED));
find("doubled").addEventListener("change", refit);
find("vacuum").addEventListener("change", refit);
window.addEventListener("resize", refit);
for (const row of rows) {
  row.addEventListener("click", event => { if (!event.target.closest("a")) show(Number(row.dataset.i)); });
  row.addEventListener("keydown", event => { if (event.key === "Enter" && event.target === row) show(Number(row.dataset.i)); });
}
show(0);
})();"""
