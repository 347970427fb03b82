"use strict";
/* Elements, made and changed without ever reading text as markup: what is shown comes from strangers. */
const nodes = {
  byId(id) { return document.getElementById(id); },
  make(name, attributes = {}, children = []) {
    const node = document.createElement(name);
    nodes.set(node, attributes);
    for (const child of [].concat(children)) node.append(child);
    return node;
  },
  set(node, attributes) {
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "text") { if (node.textContent !== value) node.textContent = value; }
      else if (value === null || value === undefined || value === false) node.removeAttribute(key);
      else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value);
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
  figures(parent, rows) {
    nodes.keep(parent, rows.map((row) => [row[0], row]), (key) => nodes.make("div", {}, [nodes.make("dt", { text: key }), nodes.make("dd")]),
      (node, [, value, note]) => {
        const place = node.lastChild;
        if (!place.firstChild) { place.append(document.createTextNode(""), nodes.make("small")); }
        if (place.firstChild.data !== value) place.firstChild.data = value;
        nodes.set(place.lastChild, { text: note || "" });
      });
  },
  cells(row, values) {
    nodes.keep(row, values.map((value, index) => [index, value]), (index, value) => nodes.make(value.head ? "th" : "td", value.head ? { scope: "row" } : {}),
      (cell, value) => {
        const given = typeof value === "object" ? value : { text: value };
        nodes.set(cell, { class: given.class || null });
        if (given.href) {
          if (!cell.firstElementChild) cell.replaceChildren(nodes.make("a"));
          nodes.set(cell.firstElementChild, { href: given.href, text: given.text });
        } else if (given.tone) {
          if (!cell.firstElementChild) cell.replaceChildren(nodes.make("span", { class: "tag" }));
          nodes.set(cell.firstElementChild, { text: given.text, "data-tone": given.tone });
        } else nodes.set(cell, { text: given.text });
      });
  },
};
