// Sorting and searching of tables, and the search for a video. Without it the page shows the same, in its first order.
(function () {
  "use strict";
  document.querySelectorAll(".live").forEach(function (part) { part.hidden = false; });

  function key(row, column) {
    var cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.value);
  }
  function inOrder(pairs, up) { // of [key, what it is the key of]
    return pairs.sort(function (a, b) { return (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0) * (up ? 1 : -1); });
  }
  function onHeadings(table, sort) { // a click on a heading calls sort(column, up)
    var heads = table.tHead.rows[0].cells;
    Array.prototype.forEach.call(heads, function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () {
        var up = head.getAttribute("aria-sort") !== "ascending";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(column, up);
      });
    });
  }
  document.querySelectorAll("table.sortable:not(#video-table)").forEach(function (table) {
    var body = table.tBodies[0];
    onHeadings(table, function (column, up) {
      var rows = Array.prototype.map.call(body.rows, function (row) { return [key(row, column), row]; });
      inOrder(rows, up).forEach(function (pair) { body.appendChild(pair[1]); });
    });
  });
  function words(text) { return text.toLowerCase().split(/\s+/).filter(Boolean); }
  function has(text, wanted) { return wanted.every(function (word) { return text.indexOf(word) >= 0; }); }
  document.querySelectorAll("table.sortable").forEach(function (table) { // by words, and by one kind of row
    var parts = document.querySelectorAll("[data-filters=" + (table.id || "none") + "]");
    function filter() {
      Array.prototype.forEach.call(table.tBodies[0].rows, function (row) {
        row.hidden = !Array.prototype.every.call(parts, function (part) {
          if (part.tagName === "SELECT") { return !part.value || row.dataset.kind === part.value; }
          var text = part.dataset.column ? row.cells[part.dataset.column].textContent : row.textContent;
          return has(text.toLowerCase(), words(part.value));
        });
      });
    }
    parts.forEach(function (part) { part.addEventListener("input", filter); });
  });

  var search = document.getElementById("video-search");
  if (!search) { return; }
  var data = JSON.parse(document.getElementById("videos-data").textContent), most = 25, all = document.getElementById("video-all");
  var table = document.getElementById("video-table"), count = document.getElementById("video-count");
  var lower = data.names.map(function (name) { return name.toLowerCase(); });
  var order = data.video.map(function (video, i) { return i; });
  var columns = [ // what the videos are sorted by
    function (i) { return data.video[i].toLowerCase(); }, function (i) { return lower[data.label[i]]; },
    function (i) { return lower[data.answer[i]]; }, function (i) { return data.probability[i]; },
    function (i) { return data.rank[i]; }, function (i) { return data.margin[i]; }];
  function cell(row, text, kind) {
    var made = row.appendChild(document.createElement("td"));
    made.textContent = text;
    made.className = kind;
  }
  function show() {
    var wanted = words(search.value), wrong = document.getElementById("only-wrong").checked, found = 0;
    var bodies = document.createDocumentFragment(), rows; // of 100 rows each: one that is not in sight is not laid out
    order.forEach(function (i) {
      if (wrong && data.rank[i] === 1) { return; }
      if (!has(data.video[i].toLowerCase() + "\n" + lower[data.label[i]] + "\n" + lower[data.answer[i]], wanted)) { return; }
      found += 1;
      if (found > most) { return; }
      if (found % 100 === 1) { rows = bodies.appendChild(document.createElement("tbody")); }
      var row = rows.appendChild(document.createElement("tr")); // insertRow() counts all rows each time
      cell(row, data.video[i], "file");
      cell(row, data.names[data.label[i]], "name");
      cell(row, data.names[data.answer[i]], "name");
      cell(row, data.probability[i].toFixed(3), "n");
      cell(row, String(data.rank[i]), "n");
      cell(row, data.margin[i].toFixed(3), "n");
    });
    table.replaceChildren(table.tHead, bodies);
    all.hidden = found <= most;
    all.textContent = "show all " + found;
    count.textContent = found + (found === 1 ? " video" : " videos") + (found > most ? "; the first " + most + " are shown" : "");
  }
  onHeadings(table, function (column, up) {
    order = inOrder(order.map(function (i) { return [columns[column](i), i]; }), up).map(function (pair) { return pair[1]; });
    show();
  });
  search.addEventListener("input", show);
  all.addEventListener("click", function () { most = Infinity; show(); });
  document.getElementById("only-wrong").addEventListener("change", show);
  show();
})();
