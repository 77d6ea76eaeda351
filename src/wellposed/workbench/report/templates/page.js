"use strict";
// Sorting of the ranked table; without it the table stays as it was ranked.
for (const button of document.querySelectorAll("th button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0], rows = [...body.rows];
    const key = (row) => row.cells[head.cellIndex].dataset.key;
    const numeric = rows.some((row) => key(row) !== "" && !isNaN(key(row)));
    const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const way = head.getAttribute("aria-sort") === first ? second : first;
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === ""); // nothing measured: always last
      const by = numeric ? x - y : (x > y) - (x < y);
      return way === "ascending" ? by : -by;
    };
    body.append(...rows.sort(order));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
  });
}
