// Searches, filters and sorts the table of materials, and chooses its columns. Shares `her` with the other scripts of the page.
(function () {
"use strict";
const her = window.her, find = name => document.getElementById(name);
const table = JSON.parse(find("values").textContent);
const heads = new Map(), rows = [], cells = new Map(), symbols = new Set();
const place = new Map(table.columns.map((column, k) => [column.key, k]));
const body = find("table").tBodies[0], headRow = find("table").tHead.rows[0];
let chosen = new Set(table.shown), visible = [];
Object.assign(her, {table, visible: () => visible, value: (i, key) => table.values[i][place.get(key)], text, verdictOf: i => table.verdicts[i]});

// What a cell says: the same as page_table.cell_text.
function text(i, key) {
  const value = her.value(i, key), column = table.columns[place.get(key)];
  if (value === null || value === "") return "";
  const plain = x => typeof x === "boolean" ? (x ? "yes" : "no") : typeof x === "number" && !column.integer ? x.toFixed(3) : String(x);
  const more = table.beside[key] ? her.value(i, table.beside[key]) : "";
  if (more) return plain(value) + (key === "h_site_kind" ? ", " : ": ") + more;
  const std = table.errors[key] ? her.value(i, table.errors[key]) : null;
  return plain(value) + (std === null ? "" : " ± " + std.toFixed(3));
}

for (const head of headRow.cells) heads.set(head.dataset.k, head);
for (const row of Array.from(body.rows)) rows[Number(row.dataset.i)] = row;
Array.from(headRow.cells).forEach((head, k) => cells.set(head.dataset.k, rows.map(row => row.cells[k])));
const words = rows.map((_, i) => [table.verdicts[i], ...table.searched.map(key => her.value(i, key) || "")].join(" ").toLowerCase());

function makeColumn(key) {
  const column = table.columns[place.get(key)], head = document.createElement("th"), button = document.createElement("button");
  head.scope = "col";
  head.dataset.k = key;
  head.title = column.about;
  if (column.number) head.className = "n";
  button.type = "button";
  button.append(column.title);
  if (column.unit) button.append(" ", Object.assign(document.createElement("small"), {textContent: `(${column.unit})`}));
  head.append(button);
  heads.set(key, head);
  cells.set(key, rows.map((_, i) => {
    const cell = document.createElement("td"), said = text(i, key);
    cell.textContent = said;
    cell.className = column.number ? "n" : said.length > table.long ? "long" : "";
    return cell;
  }));
}

function showColumns() {
  const keys = ["id", "verdict", ...table.columns.map(column => column.key).filter(key => key !== "id" && chosen.has(key)), "files"];
  keys.forEach(key => { if (!heads.has(key)) makeColumn(key); });
  headRow.replaceChildren(...keys.map(key => heads.get(key)));
  rows.forEach((row, i) => row.replaceChildren(...keys.map(key => cells.get(key)[i])));
  document.querySelectorAll("[data-column]").forEach(box => { box.checked = chosen.has(box.dataset.column); });
}

function filter() {
  const asked = find("table-search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = find("table-verdict").value, mode = find("table-elements").value, elements = Array.from(symbols);
  const fits = {all: own => elements.every(s => own.includes(s)), any: own => elements.some(s => own.includes(s)),
    none: own => !elements.some(s => own.includes(s)), only: own => own.length > 0 && own.every(s => symbols.has(s))}[mode];
  rows.forEach((row, i) => {
    row.hidden = !(asked.every(word => words[i].includes(word)) && (!verdict || table.verdicts[i] === verdict)
      && (!elements.length || fits(her.data.candidates[i].elements)));
  });
  update();
}

function update() {
  visible = Array.from(body.rows).filter(row => !row.hidden).map(row => Number(row.dataset.i));
  find("table-count").textContent = `${visible.length} of ${rows.length} shown.`;
  find("elements-summary").textContent = symbols.size ? `Elements: ${Array.from(symbols).join(" ")}` : "Elements";
  document.body.dataset.visible = visible.length;
}

// Rows without a value come last in both directions; among equal values the order before the click is kept.
function sort(key) {
  const head = heads.get(key), sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const value = row => key === "verdict" ? table.verdicts[row.dataset.i] : her.value(row.dataset.i, key);
  const compare = (x, y) => typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", {numeric: true});
  body.append(...Array.from(body.rows).sort((one, other) => {
    const x = value(one), y = value(other), none = v => v === null || v === "";
    return none(x) || none(y) ? none(x) - none(y) : sign * compare(x, y);
  }));
  update();
}

headRow.addEventListener("click", event => {
  const head = event.target.closest("button") && event.target.closest("th");
  if (head) sort(head.dataset.k);
});
find("table-search").addEventListener("input", filter);
find("table-verdict").addEventListener("change", filter);
find("table-elements").addEventListener("change", filter);
function press(button, on) {
  button.setAttribute("aria-pressed", on);
  symbols[on ? "add" : "delete"](button.dataset.element);
}
const chips = Array.from(document.querySelectorAll("[data-element]"));
chips.forEach(chip => chip.addEventListener("click", () => { press(chip, !symbols.has(chip.dataset.element)); filter(); }));
find("elements-clear").addEventListener("click", () => { chips.forEach(chip => press(chip, false)); filter(); });
document.querySelectorAll("[data-column]").forEach(box => box.addEventListener("change", () => {
  chosen[box.checked ? "add" : "delete"](box.dataset.column);
  showColumns();
}));
const choose = keys => { chosen = new Set(keys); showColumns(); };
find("columns-default").addEventListener("click", () => choose(table.shown));
find("columns-all").addEventListener("click", () => choose(place.keys()));
find("table-reset").addEventListener("click", () => {
  find("table-search").value = find("table-verdict").value = "";
  find("table-elements").value = "all";
  chips.forEach(chip => press(chip, false));
  filter();
});
// One menu is open at a time; Escape and a click elsewhere close it.
const menus = Array.from(document.querySelectorAll("details.menu"));
menus.forEach(menu => menu.addEventListener("toggle", () => {
  if (menu.open) menus.forEach(other => { if (other !== menu) other.open = false; });
}));
document.addEventListener("click", event => { if (!event.target.closest("details.menu")) menus.forEach(menu => { menu.open = false; }); });
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  menus.filter(menu => menu.open).forEach(menu => { menu.open = false; menu.querySelector("summary").focus(); });
});
her.rows = rows;
filter();
})();
