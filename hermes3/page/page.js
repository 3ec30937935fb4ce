// Tables sort by a click on a column's head: numbers by value, the rest by letters. Without a script they stay as they are.
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 3) continue;
  const number = (text) => { const match = text.replace(/\u2212/g, "-").replace(/,/g, "").match(/-?\d+(\.\d+)?/); return match ? Number(match[0]) : NaN; };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...body.rows];
      const numeric = rows.some((row) => /^[\u2212+\-]?[\d.,]+/.test(key(row)));
      const order = (a, b) => numeric ? (number(key(a)) || -Infinity) - (number(key(b)) || -Infinity) : key(a).localeCompare(key(b));
      rows.sort((a, b) => (down ? 1 : -1) * order(a, b));
      body.append(...rows);
    });
  });
}
