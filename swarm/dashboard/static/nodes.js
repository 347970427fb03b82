"use strict";
/* Elements, made and changed without ever reading text as markup: what is shown comes from strangers.

Nothing is drawn anew that is there already, and nothing is touched that has not changed: what was set last is kept
beside each element. */
const nodes = {
  byId(id) { return document.getElementById(id); },

  make(name, attributes = {}, children = []) { return nodes.filled(document.createElement(name), attributes, children); },
  svg(name, attributes = {}, children = []) { return nodes.filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children); },
  filled(node, attributes, children) {
    nodes.set(node, attributes);
    for (const child of [].concat(children)) node.append(child);
    return node;
  },
  icon(name) { return nodes.svg("svg", { "aria-hidden": "true", class: "symbol" }, [nodes.svg("use", { href: `#i-${name}` })]); },

  /* `text` is the element's text, `width` a share of its parent (0 to 1), null takes an attribute away. */
  set(node, attributes) {
    const was = node.was || (node.was = {});
    for (const [key, value] of Object.entries(attributes)) {
      if (was[key] === value) continue;
      was[key] = value;
      if (key === "text") node.textContent = value;
      else if (key === "width") node.style.width = `${(100 * Math.min(1, Math.max(0, value))).toFixed(1)}%`;
      else if (key === "hidden") node.hidden = value;
      else if (value === null || value === undefined || value === false) node.removeAttribute(key);
      else node.setAttribute(key, value);
    }
    return node;
  },

  /* Keeps the children of `parent` in step with `entries` ([key, value]): a child stays for as long as its key does. */
  keep(parent, entries, create, update) {
    const known = parent.known || (parent.known = new Map());
    const wanted = new Set(entries.map(([key]) => key));
    for (const [key, node] of known) if (!wanted.has(key)) { node.remove(); known.delete(key); }
    let before = null;
    for (const [key, value] of entries) {
      let node = known.get(key);
      if (!node) { node = create(key, value); known.set(key, node); }
      update(node, value, key);
      const place = before ? before.nextSibling : parent.firstChild;
      if (place !== node) parent.insertBefore(node, place);
      before = node;
    }
  },

  /* A list of [name, value, note]: the note is small, below. */
  figures(parent, rows) {
    nodes.keep(parent, rows.map((row) => [row[0], row]), (key) => nodes.make("div", {}, [nodes.make("dt", { text: key }), nodes.make("dd", { class: "value" }), nodes.make("dd", { class: "note" })]),
      (node, [, value, note]) => { nodes.set(node.children[1], { text: value }); nodes.set(node.children[2], { text: note || "" }); });
  },

  /* The cells of a row: text, or {text, href, tone, class, head, bar, parts}. */
  cells(row, cells) {
    cells.forEach((cell, index) => {
      const given = cell !== null && typeof cell === "object" ? cell : { text: cell };
      let place = row.children[index];
      if (!place) {
        place = nodes.make(given.head ? "th" : "td", given.head ? { scope: "row" } : {});
        if (given.parts) place.append(nodes.make("span", { class: "span", "aria-hidden": "true" }, [nodes.make("span", { class: "found" }), nodes.make("span", { class: "rerouted" })]));
        if (given.bar !== undefined) place.append(nodes.make("span", { class: "thin", "aria-hidden": "true" }, [nodes.make("span")]));
        place.append(nodes.make(given.href !== undefined ? "a" : "span", {}));
        row.append(place);
      }
      nodes.set(place, { class: given.class || null });
      if (given.parts) given.parts.forEach((share, part) => nodes.set(place.firstChild.children[part], { width: share }));
      if (given.bar !== undefined) nodes.set(place.firstChild.firstChild, { width: given.bar });
      nodes.set(place.lastChild, { text: String(given.text), href: given.href, class: given.tone ? "tag" : null, "data-tone": given.tone || null, title: given.title });
    });
  },

  row() { return nodes.make("tr"); },

  /* The first of many entries, and a button for more of them. */
  limited(entries, button, first, what) {
    const shown = button.shown || (button.shown = first);
    if (!button.heard) {
      button.heard = true;
      button.addEventListener("click", () => { button.shown += 4 * first; button.dispatchEvent(new CustomEvent("more", { bubbles: true })); });
    }
    const left = entries.length - shown;
    nodes.set(button, { hidden: left <= 0, text: left > 0 ? `Show ${format.number(Math.min(left, 4 * first))} more of ${format.number(entries.length)} ${what}` : "" });
    return entries.slice(0, shown);
  },

  /* A button that copies what `read()` gives; where a browser does not let it, the text of `place` is selected instead. */
  copying(button, place, read) {
    const title = button.textContent;
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(read()); button.textContent = "Copied"; } catch {
        const range = document.createRange();
        range.selectNodeContents(place);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = title; }, 1500);
    });
    return button;
  },
};
