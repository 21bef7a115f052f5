"use strict";
// What is looked at stands in the page's address, after "#": layer, q (words to find), sort, order, wasted. So a view
// can be kept and sent, and "back" leads to the one before.
(function () {
  const STEP = 200;
  const data = JSON.parse(document.getElementById("data").textContent);
  const LAYER = 1, PATH = 0, DOES = 2, SIZE = 3, HIDDEN = 4, MODE = 5, TIME = 6, TARGET = 7;
  const COLUMNS = { path: PATH, layer: LAYER, change: DOES, size: SIZE, hidden: HIDDEN, mode: MODE, time: TIME };
  const DOWN = new Set(["size", "layer", "hidden", "time"]); // what is most interesting where there is most of it
  const WORDS = { A: ["added", "added"], C: ["replaced", "changed"], D: ["deletes", "deleted"], "": ["listed again", "soft"] };
  const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

  const body = document.getElementById("rows");
  const told = document.getElementById("told");
  const more = document.getElementById("more");
  const find = document.getElementById("find");
  const choice = document.getElementById("choice");
  const wasted = document.getElementById("wasted");
  const hint = document.getElementById("hint");
  const bands = new Map(Array.from(document.querySelectorAll(".stack a"), (a) => [Number(a.dataset.layer), a]));
  const sections = new Map(Array.from(document.querySelectorAll(".layer"), (s) => [Number(s.dataset.layer), s]));
  const heads = Array.from(document.querySelectorAll("th[data-sort]"));
  let found = [];
  let shown = 0;

  function human(size) {
    let unit = 0;
    while (unit < UNITS.length - 1 && Number(size.toPrecision(3)) >= 1000) {
      size /= 1000;
      unit += 1;
    }
    return String(Number(size.toPrecision(3))) + UNITS[unit];
  }

  function state() {
    const words = new URLSearchParams(location.hash.slice(1));
    const sort = Object.hasOwn(COLUMNS, words.get("sort") || "") ? words.get("sort") : "size";
    const order = words.get("order");
    const layer = Number(words.get("layer") || 0);
    return {
      layer: bands.has(layer) ? layer : 0,
      q: words.get("q") || "",
      sort,
      down: order ? order === "down" : DOWN.has(sort),
      wasted: words.get("wasted") === "1",
    };
  }

  function go(change, replace) {
    const next = Object.assign(state(), change);
    const words = new URLSearchParams();
    if (next.layer) words.set("layer", String(next.layer));
    if (next.q) words.set("q", next.q);
    if (next.sort !== "size") words.set("sort", next.sort);
    if (next.down !== DOWN.has(next.sort)) words.set("order", next.down ? "down" : "up");
    if (next.wasted) words.set("wasted", "1");
    const text = "#" + words.toString();
    if (replace) {
      history.replaceState(null, "", text);
      draw();
    } else if (location.hash !== text) {
      location.hash = text;
    }
  }

  function show(layer) {
    for (const [number, section] of sections) section.hidden = number !== layer;
    hint.hidden = layer !== 0;
  }

  function cell(row, text, name) {
    const made = row.insertCell();
    made.textContent = text;
    made.className = name;
    return made;
  }

  function append() {
    const rows = document.createDocumentFragment();
    for (const file of found.slice(shown, shown + STEP)) {
      const row = document.createElement("tr");
      if (file[HIDDEN]) row.className = "hidden";
      const [word, name] = WORDS[file[DOES]];
      cell(row, file[TARGET] ? file[PATH] + " \u2192 " + file[TARGET] : file[PATH], "path");
      cell(row, file[SIZE] < 0 ? "" : human(file[SIZE]), "number");
      cell(row, String(file[LAYER]), "number");
      cell(row, word, "narrow " + name);
      cell(row, file[HIDDEN] ? "by layer " + file[HIDDEN] : "", "narrow wasted");
      cell(row, file[MODE], "narrow mono optional");
      cell(row, file[TIME] === null ? "" : new Date(file[TIME] * 1000).toISOString().slice(0, 16).replace("T", " "), "narrow optional");
      rows.append(row);
    }
    body.append(rows);
    shown = Math.min(shown + STEP, found.length);
    more.hidden = shown >= found.length;
    more.textContent = "Show " + Math.min(STEP, found.length - shown) + " more";
    told.textContent = found.length === 0
      ? "No file matches."
      : shown < found.length
        ? "The first " + shown + " of " + found.length + " names."
        : found.length + (found.length === 1 ? " name." : " names.");
  }

  function draw() {
    const now = state();
    const words = now.q.toLowerCase().split(/\s+/).filter(Boolean);
    found = data.files.filter(
      (file) =>
        (!now.layer || file[LAYER] === now.layer) &&
        (!now.wasted || file[HIDDEN]) &&
        words.every((word) => file[PATH].toLowerCase().includes(word)),
    );
    const at = COLUMNS[now.sort];
    const sign = now.down ? -1 : 1;
    found.sort((one, two) => {
      const a = one[at], b = two[at];
      return a === b ? (one[PATH] < two[PATH] ? -1 : one[PATH] > two[PATH] ? 1 : one[LAYER] - two[LAYER]) : a < b ? -sign : sign;
    });
    shown = 0;
    body.textContent = "";
    append();
    show(now.layer);
    for (const [number, band] of bands) band.setAttribute("aria-current", String(number === now.layer));
    for (const head of heads) {
      head.setAttribute("aria-sort", head.dataset.sort !== now.sort ? "none" : now.down ? "descending" : "ascending");
    }
    if (find.value !== now.q) find.value = now.q;
    choice.value = String(now.layer);
    wasted.checked = now.wasted;
  }

  for (const [number, band] of bands) {
    band.addEventListener("click", (event) => {
      event.preventDefault();
      go({ layer: state().layer === number ? 0 : number });
    });
    for (const name of ["mouseenter", "focus"]) band.addEventListener(name, () => show(number));
    for (const name of ["mouseleave", "blur"]) band.addEventListener(name, () => show(state().layer));
  }
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const now = state();
      const sort = head.dataset.sort;
      go({ sort, down: sort === now.sort ? !now.down : DOWN.has(sort) });
    });
  }
  for (const link of document.querySelectorAll("[data-find]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      go({ q: link.dataset.find, layer: 0, wasted: false });
      find.scrollIntoView({ block: "center" });
    });
  }
  find.addEventListener("input", () => go({ q: find.value }, true));
  choice.addEventListener("change", () => go({ layer: Number(choice.value) }));
  wasted.addEventListener("change", () => go({ wasted: wasted.checked }));
  more.addEventListener("click", append);
  window.addEventListener("hashchange", draw);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== find) {
      event.preventDefault();
      find.focus();
    } else if (event.key === "Escape") {
      go({ layer: 0, q: "", wasted: false });
    }
  });
  document.getElementById("browse").hidden = false;
  draw();
})();
