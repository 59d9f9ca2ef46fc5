// Fetches the page again when the warehouse changed, sorts tables, submits choices. Every page works without it.
"use strict";
(() => {
  const EVERY_MS = 5000;
  document.documentElement.classList.add("scripted");

  function value(row, column) {
    const cell = row.cells[column];
    const given = cell.dataset.value;
    const number = given === undefined || given === "" ? NaN : Number(given);
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  }

  function sort(table, column, ascending) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = value(a, column), y = value(b, column);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return ascending ? order : -order;
    });
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      if (i === column) th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    });
  }

  function prepare() {
    for (const table of document.querySelectorAll("table[data-sortable]")) {
      [...table.tHead.rows[0].cells].forEach((th, column) => {
        if (th.querySelector("button")) return;
        const button = document.createElement("button");
        button.type = "button";
        button.title = "sort";
        button.append(...th.childNodes);
        th.append(button);
        button.addEventListener("click", () => sort(table, column, th.getAttribute("aria-sort") === "descending"));
      });
    }
    for (const form of document.querySelectorAll("form[data-auto]")) {
      form.addEventListener("change", () => form.requestSubmit());
    }
  }

  function remembered() {
    const sorted = [...document.querySelectorAll("table[id]")].map((table) => {
      const at = [...table.tHead.rows[0].cells].findIndex((th) => th.hasAttribute("aria-sort"));
      return [table.id, at, at >= 0 && table.tHead.rows[0].cells[at].getAttribute("aria-sort") === "ascending"];
    });
    return { sorted, open: [...document.querySelectorAll("details")].map((d) => d.open) };
  }

  function restore(before) {
    for (const [id, at, ascending] of before.sorted) {
      const table = document.getElementById(id);
      if (at >= 0 && table) sort(table, at, ascending);
    }
    document.querySelectorAll("details").forEach((d, i) => { d.open = Boolean(before.open[i]); });
  }

  async function refresh(state) {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const main = page.getElementById("main"), status = page.getElementById("status");
    if (!main || !status) return;
    const before = remembered();
    document.getElementById("main").replaceChildren(...main.childNodes);
    document.getElementById("status").replaceChildren(...status.childNodes);
    document.body.dataset.state = page.body.dataset.state || state;
    prepare();
    restore(before);
  }

  async function look() {
    // A reader who is typing, or who looks at an impression, keeps the page as it is.
    const busy = document.hidden || document.querySelector("textarea") || (document.activeElement && document.activeElement.matches("select, input"));
    if (!busy) {
      try {
        const answer = await fetch("/state");
        if (answer.ok) {
          const { state } = await answer.json();
          if (state && state !== document.body.dataset.state) await refresh(state);
        }
        document.getElementById("status").removeAttribute("data-lost");
      } catch (error) {
        document.getElementById("status").dataset.lost = "yes";
      }
    }
    setTimeout(look, EVERY_MS);
  }

  prepare();
  setTimeout(look, EVERY_MS);
})();
