"use strict";
(() => {
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const form = document.getElementById("filter");
  const words = document.getElementById("words");
  const verdict = document.getElementById("verdict");
  const shown = document.getElementById("shown");
  const chosen = { caller: "", class: "" };
  const texts = rows.map((row) => row.textContent.toLowerCase());

  function show() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, at) => {
      const fits = wanted.every((word) => texts[at].includes(word))
        && (!verdict.value || row.dataset.verdict === verdict.value)
        && (!chosen.caller || row.dataset.caller === chosen.caller)
        && (!chosen.class || row.dataset.classes.split(", ").includes(chosen.class));
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    const only = chosen.caller ? ", of one caller" : "";
    shown.textContent = `${count} of ${rows.length} kinds of requests${only}`;
  }

  function sort(head, column) {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const order = new Intl.Collator("en", { numeric: true });
    const sorted = [...rows].sort((a, b) => order.compare(key(a), key(b)) * (up ? 1 : -1));
    body.append(...sorted);
  }

  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(head, column));
    head.replaceChildren(button);
  });
  for (const link of document.querySelectorAll("a[data-caller]")) {
    link.addEventListener("click", () => {
      chosen.caller = link.dataset.caller;
      chosen.class = link.dataset.class ?? "";
      words.value = "";
      verdict.value = "";
      show();
    });
  }
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", show);
  form.addEventListener("reset", () => {
    chosen.caller = chosen.class = "";
    setTimeout(show);
  });
  show();
})();
