// Sorting and searching of tables, and the search for a video. Without it the page shows the same, in its first order.
(() => {
  "use strict";
  const element = id => document.getElementById(id);
  document.querySelectorAll(".live").forEach(part => { part.hidden = false; });

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.value);
  }
  function inOrder(items, keyOf, up) {
    const pairs = items.map(item => [keyOf(item), item]);
    pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
    return pairs.map(([_, item]) => item);
  }
  function onHeadings(table, sort) { // a click on a heading calls sort(column, up)
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(column, up);
      });
    });
  }
  document.querySelectorAll("table.sortable:not(#video-table)").forEach(table => {
    const body = table.tBodies[0];
    onHeadings(table, (column, up) => {
      inOrder([...body.rows], row => key(row, column), up).forEach(row => body.append(row));
    });
  });
  const words = text => text.toLowerCase().split(/\s+/);
  const has = (text, wanted) => wanted.every(word => text.includes(word));
  document.querySelectorAll("table.sortable").forEach(table => { // by words, and by one kind of row
    const parts = [...document.querySelectorAll("[data-filters=" + (table.id || "none") + "]")];
    const fits = (row, part) => part.tagName === "SELECT" ? !part.value || row.dataset.kind === part.value
      : has((part.dataset.column ? row.cells[part.dataset.column] : row).textContent.toLowerCase(), words(part.value));
    parts.forEach(part => part.addEventListener("input", () => {
      [...table.tBodies[0].rows].forEach(row => { row.hidden = !parts.every(one => fits(row, one)); });
    }));
  });

  const search = element("video-search");
  if (!search) { return; }
  const data = JSON.parse(element("videos-data").textContent), all = element("video-all"), table = element("video-table");
  const names = numbers => numbers.map(number => data.names[number]);
  const columns = [data.video, names(data.label), names(data.answer), data.probability, data.rank, data.margin];
  const kinds = ["file", "name", "name", "n", "n", "n"];
  const keys = columns.map(values => values.map(value => typeof value === "string" ? value.toLowerCase() : value));
  let order = data.video.map((_, i) => i), most = 25;
  function show() {
    const wanted = words(search.value), wrong = element("only-wrong").checked, bodies = document.createDocumentFragment();
    let found = 0, rows; // of 100 rows each: one that is not in sight is not laid out
    order.forEach(i => {
      if (wrong && data.rank[i] === 1) { return; }
      if (!has(keys[0][i] + "\n" + keys[1][i] + "\n" + keys[2][i], wanted)) { return; }
      found += 1;
      if (found > most) { return; }
      if (found % 100 === 1) { rows = bodies.appendChild(document.createElement("tbody")); }
      const row = rows.appendChild(document.createElement("tr")); // insertRow() counts all rows each time
      columns.forEach((values, column) => {
        const cell = row.appendChild(document.createElement("td"));
        cell.textContent = column === 3 || column === 5 ? values[i].toFixed(3) : values[i];
        cell.className = kinds[column];
      });
    });
    table.replaceChildren(table.tHead, bodies);
    all.hidden = found <= most;
    all.textContent = "show all " + found;
    element("video-count").textContent = found + (found === 1 ? " video" : " videos")
      + (found > most ? "; the first " + most + " are shown" : "");
  }
  onHeadings(table, (column, up) => {
    order = inOrder(order, i => keys[column][i], up);
    show();
  });
  search.addEventListener("input", show);
  all.addEventListener("click", () => { most = Infinity; show(); });
  element("only-wrong").addEventListener("change", show);
  show();
})();
