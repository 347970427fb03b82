"use strict";
/* The contribution board: all peers that have ever been here, by credit or by another column. */
const board = {
  order: "credit",
  descending: true,
  FIRST: 25,
  columns: [["rank", "#", "number"], ["name", "Peer", ""], ["credit", "Credit", "credit"], ["counted", "Microbatches", "number"], ["stage", "Stage", "number"], ["state", "State", ""], ["online", "Online", "number"], ["losses", "Times lost", "number"]],

  head(redraw) {
    const row = nodes.byId("board-head");
    for (const [key, title, kind] of board.columns) {
      const cell = nodes.make("th", { scope: "col", class: kind === "" ? null : kind, "data-key": key });
      if (key === "rank") cell.append(nodes.make("abbr", { title: "rank by credit", text: title }));
      else {
        const button = nodes.make("button", { type: "button" }, [nodes.make("span", { text: title }), nodes.make("span", { class: "arrow", "aria-hidden": "true" })]);
        button.addEventListener("click", () => {
          board.descending = board.order === key ? !board.descending : !["name", "stage", "state"].includes(key);
          board.order = key;
          redraw();
        });
        cell.append(button);
      }
      row.append(cell);
    }
    nodes.byId("search").addEventListener("input", redraw);
  },

  online(peer, at) { return (peer.online || 0) + (peer.joined_at !== null && peer.joined_at !== undefined ? Math.max(0, at - peer.joined_at) : 0); },

  /* [id, peer, rank] of all, by credit; equal credit, equal rank. */
  ranked(doc) {
    const all = Object.entries(doc.peers || {}).sort(([, a], [, b]) => b.credit - a.credit || (a.name < b.name ? -1 : 1));
    let rank = 0;
    return all.map(([id, peer], place) => { if (!place || all[place - 1][1].credit !== peer.credit) rank = place + 1; return [id, peer, rank]; });
  },

  matching(all, words) {
    const wanted = words.trim().toLowerCase(), stage = /^stage\s*:?\s*(\d+)$/.exec(wanted);
    if (!wanted) return all;
    if (stage) return all.filter(([, peer]) => String(peer.stage) === stage[1]);
    return all.filter(([id, peer]) => peer.name.toLowerCase().includes(wanted) || id.toLowerCase().includes(wanted));
  },

  list(doc) {
    const ranked = board.ranked(doc), most = ranked.length ? ranked[0][1].credit || 1 : 1, words = nodes.byId("search").value;
    const rows = board.matching(ranked, words), sign = board.descending ? -1 : 1;
    const value = (peer) => (board.order === "online" ? board.online(peer, doc.at) : board.order === "name" ? peer.name.toLowerCase() : peer[board.order] ?? -1);
    if (board.order !== "credit" || !board.descending) rows.sort(([, a], [, b]) => { const x = value(a), y = value(b); return x === y ? 0 : (x < y ? -1 : 1) * sign; });
    nodes.set(nodes.byId("no-peers"), { hidden: rows.length > 0, text: ranked.length ? "No peer is called that, and no peer id holds it." : "No peer has joined yet." });
    nodes.set(nodes.byId("board-box"), { hidden: !rows.length });
    for (const cell of nodes.byId("board-head").children) {
      const isOrder = cell.dataset.key === board.order, arrow = cell.querySelector(".arrow");
      nodes.set(cell, { "aria-sort": isOrder ? (board.descending ? "descending" : "ascending") : null });
      if (arrow) nodes.set(arrow, { text: isOrder ? (board.descending ? "↓" : "↑") : "" });
    }
    const shown = nodes.limited(rows, nodes.byId("peers-more"), board.FIRST, "peers");
    nodes.keep(nodes.byId("peers"), shown.map(([id, peer, rank]) => [id, { peer, rank }]), nodes.row, (row, { peer, rank }, id) => nodes.cells(row, [
      { text: rank, class: "number" }, { text: peer.name, href: `#peer=${id}`, head: true, class: "who" },
      { text: format.number(peer.credit, 1), class: "credit", bar: peer.credit / most }, { text: format.number(peer.counted), class: "number" },
      { text: peer.stage ?? NOTHING, class: "number" }, { text: peer.banned ? "banned" : peer.state, tone: peer.banned ? "bad" : TONES[peer.state] || "none" },
      { text: format.seconds(board.online(peer, doc.at)), class: "number" }, { text: format.number(peer.losses), class: "number" },
    ]));
  },
};
