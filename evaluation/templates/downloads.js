// Makes files from what the page holds: CIF, extxyz, CSV and JSON. Nothing is fetched, so they work wherever the page is.
(function () {
"use strict";
const her = window.her, find = name => document.getElementById(name);
const fileName = text => text.replace(/[^A-Za-z0-9._-]+/g, "_").slice(0, 80) || "material";

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The page has the mid-plane of a sheet at z = 0; files have it in the middle of the cell.
function cell(structure) {
  const [a, b, c] = [0, 3, 6].map(at => structure.cell.slice(at, at + 3)), half = structure.sheet ? 0.5 : 0;
  const xyz = structure.symbols.map((_, i) => structure.xyz.slice(3 * i, 3 * i + 3).map((x, k) => x + half * c[k]));
  return {vectors: [a, b, c], xyz};
}
const dot = (u, v) => u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];

function cif(i) {
  const {structure, id} = her.data.candidates[i], {vectors, xyz} = cell(structure), [a, b, c] = vectors;
  const volume = dot(a, cross(b, c)), size = v => Math.sqrt(dot(v, v));
  const angle = (u, v) => (Math.acos(dot(u, v) / size(u) / size(v)) * 180 / Math.PI).toFixed(4);
  const reciprocal = [cross(b, c), cross(c, a), cross(a, b)].map(v => v.map(x => x / volume));
  const sites = structure.symbols.map((symbol, k) => `${symbol} ${symbol}${k + 1} ` +
    reciprocal.map(v => dot(v, xyz[k])).map(x => (x - Math.floor(x + 1e-6)).toFixed(6)).join(" ") + " 1");
  return ["# relaxed structure, all atoms of the cell, lengths to 0.001 angstrom", "data_" + fileName(id),
    `_cell_length_a ${size(a).toFixed(4)}`, `_cell_length_b ${size(b).toFixed(4)}`, `_cell_length_c ${size(c).toFixed(4)}`,
    `_cell_angle_alpha ${angle(b, c)}`, `_cell_angle_beta ${angle(a, c)}`, `_cell_angle_gamma ${angle(a, b)}`,
    "_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 1", "loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'",
    "loop_", "_atom_site_type_symbol", "_atom_site_label", "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z",
    "_atom_site_occupancy", ...sites, ""].join("\n");
}

function extxyz(list) {
  return list.filter(i => her.data.candidates[i].structure).map(i => {
    const {structure} = her.data.candidates[i], {vectors, xyz} = cell(structure);
    const known = record(i), info = Object.keys(known).filter(key => known[key] !== null && known[key] !== "").map(key => {
      const value = known[key];
      if (typeof value === "boolean") return `${key}=${value ? "T" : "F"}`;
      return typeof value === "number" ? `${key}=${value}` : `${key}="${value.replace(/\s+/g, " ").replace(/[\\"]/g, "\\$&")}"`;
    });
    const atoms = structure.symbols.map((symbol, k) => `${symbol} ${xyz[k].map(x => x.toFixed(6)).join(" ")}`);
    const lattice = `Lattice="${vectors.flat().join(" ")}" Properties=species:S:1:pos:R:3`;
    return [atoms.length, `${lattice} ${info.join(" ")} pbc="T T ${structure.sheet ? "F" : "T"}"`, ...atoms, ""].join("\n");
  }).join("");
}

function record(i) {
  const found = Object.fromEntries(her.table.columns.map(column => [column.key, her.value(i, column.key)]));
  return {...found, verdict: her.verdictOf(i)};
}

function csv(list) {
  // A spreadsheet would run a text that begins like a formula; an apostrophe keeps it a text.
  const write = value => {
    const plain = value === null ? "" : typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : String(value);
    return /[",\r\n]/.test(plain) ? `"${plain.replace(/"/g, '""')}"` : plain;
  };
  const keys = [...her.table.columns.map(column => column.key), "verdict"];
  return [keys, ...list.map(record).map(found => keys.map(key => found[key]))].map(line => line.map(write).join(",")).join("\r\n") + "\r\n";
}

const set = fileName(her.table.name);
Object.assign(her, {
  saveCif: i => save(fileName(her.data.candidates[i].id) + ".cif", cif(i), "chemical/x-cif"),
  saveExtxyz: list => save((list.length === 1 ? fileName(her.data.candidates[list[0]].id) : set) + ".extxyz", extxyz(list), "text/plain"),
});
find("save-csv").addEventListener("click", () => save(set + ".csv", csv(her.visible()), "text/csv"));
find("save-json").addEventListener("click", () => save(set + ".json", JSON.stringify(her.visible().map(record), null, 1), "application/json"));
find("save-extxyz").addEventListener("click", () => her.saveExtxyz(her.visible()));
})();
