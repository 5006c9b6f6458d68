// Sort the table of sequences by a column: numbers by value, missing ones last. The page works without this script.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = table.querySelectorAll("thead tr:last-child th");
  const body = table.querySelector("tbody.rows");
  heads.forEach((head, column) => {
    const button = document.createElement("span"); // Chromium does not repeat <button> elements in table heads on printed pages
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.children[column];
        return "v" in cell.dataset ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent.trim();
      };
      const order = (a, b) => {
        if (typeof a === "string") return down ? b.localeCompare(a) : a.localeCompare(b);
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return down ? b - a : a - b;
      };
      body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
    };
    button.addEventListener("click", sort);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
}
