"use strict";
// Sorting of the ranked table; without it the table stays as it was ranked.
for (const button of document.querySelectorAll("th button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending";
    const key = (row) => row.cells[head.cellIndex].dataset.key ?? "";
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === ""); // nothing measured: always last
      const by = isNaN(x) || isNaN(y) ? (x < y) - (x > y) : y - x;
      return down ? by : -by;
    };
    body.append(...[...body.rows].sort(order));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  });
}
