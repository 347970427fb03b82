"use strict";
/* The contribution board, and one peer's page. */
const people = {
  order: "credit",
  descending: true,
  columns: [["name", "Peer"], ["stage", "Stage"], ["state", "State"], ["credit", "Credit"], ["counted", "Microbatches"], ["online", "Online"], ["losses", "Losses"]],

  head(redraw) {
    const row = nodes.byId("board-head");
    for (const [key, title] of people.columns) {
      const button = nodes.make("button", { type: "button", text: title });
      button.addEventListener("click", () => {
        people.descending = people.order === key ? !people.descending : key !== "name";
        people.order = key;
        redraw();
      });
      row.append(nodes.make("th", { scope: "col", class: people.isNumber(key) ? "number" : null, "data-key": key }, [button]));
    }
  },
  isNumber(key) { return ["credit", "counted", "online", "losses"].includes(key); },
  online(peer, at) { return (peer.online || 0) + (peer.joined_at !== null && peer.joined_at !== undefined ? Math.max(0, at - peer.joined_at) : 0); },

  board(doc) {
    const peers = Object.entries(doc.peers || {}), sign = people.descending ? -1 : 1;
    const value = (peer) => (people.order === "online" ? people.online(peer, doc.at) : peer[people.order] ?? "");
    peers.sort(([, a], [, b]) => { const x = value(a), y = value(b); return x === y ? (a.name < b.name ? -1 : 1) : (x < y ? -1 : 1) * sign; });
    nodes.byId("no-peers").hidden = peers.length > 0;
    for (const cell of nodes.byId("board-head").children) {
      nodes.set(cell, { "aria-sort": cell.dataset.key === people.order ? (people.descending ? "descending" : "ascending") : null });
    }
    const wanted = nodes.byId("search").value.trim().toLowerCase();
    nodes.keep(nodes.byId("peers"), peers, () => nodes.make("tr"), (row, peer, id) => {
      nodes.set(row, { "data-found": String(!wanted || peer.name.toLowerCase().includes(wanted) || id.toLowerCase().includes(wanted)) });
      nodes.cells(row, [
        { text: peer.name, href: `#peer=${id}`, head: true }, String(peer.stage ?? "–"), { text: peer.banned ? "banned" : peer.state, tone: peer.banned ? "bad" : TONES[peer.state] || "warn" },
        { text: format.number(peer.credit, 1), class: "number" }, { text: format.number(peer.counted), class: "number" },
        { text: format.seconds(people.online(peer, doc.at)), class: "number" }, { text: format.number(peer.losses), class: "number" },
      ]);
    });
  },

  page(doc, id) {
    const section = nodes.byId("peer"), peer = (doc.peers || {})[id];
    section.hidden = !id;
    if (!id) return;
    nodes.set(nodes.byId("peer-title"), { text: peer ? `${peer.name}` : "This peer is not known in this run" });
    const place = nodes.byId("peer-page");
    if (!peer) { place.replaceChildren(nodes.make("p", { class: "none", text: "Perhaps it belongs to another run, or has not joined yet." })); return; }
    if (!place.querySelector("dl")) place.replaceChildren(nodes.make("p", { class: "need" }), nodes.make("dl", { class: "figures small" }), nodes.make("p", { class: "hint" }));
    const member = (doc.members || {})[peer.member] || {};
    const refused = Object.entries(member.refused || {}).map(([reason, count]) => `${count} × ${reason.toLowerCase().replaceAll("_", " ")}`).join(", ");
    const busy = member.forward ? 1 / (member.forward + member.backward) : 0;
    const links = Object.values(doc.links || {}).filter((link) => link.near === id);
    const down = links.length ? Math.max(...links.map((link) => link.rate)) : peer.down;
    let word = member.waits ? `It ${member.waits}.` : member.state ? "It is at work." : `It is not here now${peer.why ? `: ${peer.why}` : ""}.`;
    if (peer.banned) word = `The organizer has banned it: ${peer.banned}.`;
    nodes.set(place.querySelector(".need"), { text: word });
    nodes.figures(place.querySelector("dl"), [
      ["Work accepted", `${format.number(peer.counted)} microbatches`, `credit ${format.number(peer.credit, 1)}`],
      ["Work refused", refused || "none", `${format.number(member.busy ?? 0)} times busy`],
      ["Online", format.seconds(people.online(peer, doc.at)), peer.losses === 1 ? "lost once" : `lost ${format.number(peer.losses)} times`],
      ["Throughput", busy ? `${busy.toFixed(2)} visits/s` : "–", member.forward ? `forward ${format.seconds(member.forward)}, backward ${format.seconds(member.backward)}` : ""],
      ["Open visits", String(member.open ?? "–"), member.open ? `${member.below} wait for the next stage` : ""],
      ["Link", down ? `${format.rate(down)} down` : "–", links.length ? `round trip ${format.seconds(Math.min(...links.map((link) => link.round_trip)))}` : ""],
      ["Sent", format.bytes(member.sent), member.codec_seconds ? `${format.seconds(member.codec_seconds)} spent in codecs` : ""],
      ["Machine", peer.device || "–", [peer.memory ? `lends ${format.bytes(peer.memory)}` : "", peer.version ? `version ${peer.version}` : "", peer.relayed ? "relayed" : ""].filter(Boolean).join(", ")],
    ]);
    nodes.set(place.querySelector(".hint"), { text: `Peer id ${id}` });
  },
};
