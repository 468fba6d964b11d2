// Sorts a table by the column whose title is clicked. Rows without a value come last in both directions; among equal values the
// order before the click is kept.
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = Array.from(table.querySelectorAll("th"));
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, body = table.tBodies[0];
    const numeric = head.dataset.type === "number", value = row => row.cells[column].dataset.v;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const compare = (x, y) => numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", {numeric: true});
    const rows = Array.from(body.rows).sort((one, other) => {
      const x = value(one), y = value(other);
      return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
    });
    body.append(...rows);
  }));
});
