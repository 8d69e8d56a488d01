// Tables sort by a click on a head: numbers by value, words by alphabet, what is missing last.
document.querySelectorAll("table").forEach((table) => {
  table.querySelectorAll("th").forEach((head, column) => {
    head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => {
        const cell = row.cells[column];
        const value = cell.dataset.v ?? cell.textContent;
        return head.classList.contains("n") ? (value === "" ? NaN : Number(value)) : value;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || x === "") return Number.isNaN(y) || y === "" ? 0 : 1;
        if (Number.isNaN(y) || y === "") return -1;
        const sign = x < y ? -1 : x > y ? 1 : 0;
        return up ? sign : -sign;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
});
// One facet of every figure is shown at a time.
const choice = document.querySelector("#facet");
const show = () => document.querySelectorAll("figure[data-facet]").forEach((figure) => {
  figure.hidden = figure.dataset.facet !== choice.value;
});
if (choice) { choice.addEventListener("change", show); show(); }
