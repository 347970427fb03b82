"use strict";
/* One peer's page: what of its work counted, what was refused and why, what it waits for and for whom. */
const person = {
  begin() { nodes.copying(nodes.byId("peer-copy"), nodes.byId("peer-id"), () => nodes.byId("peer-id").textContent); },

  page(doc, id) {
    const peer = (doc.peers || {})[id];
    nodes.set(nodes.byId("overview"), { hidden: Boolean(id) });
    nodes.set(nodes.byId("person"), { hidden: !id });
    nodes.set(document.body, { "data-view": id ? "person" : null });
    if (!id) return;
    const member = peer ? (doc.members || {})[peer.member] || null : null;
    nodes.set(nodes.byId("peer-title"), { text: peer ? peer.name : "This peer is not known in this run" });
    nodes.set(nodes.byId("peer-id"), { text: id });
    nodes.set(nodes.byId("peer-state"), { hidden: !peer, text: peer ? (peer.banned ? "banned" : peer.state) : "", "data-tone": peer ? (peer.banned ? "bad" : TONES[peer.state] || "none") : null });
    nodes.set(nodes.byId("peer-waits"), { text: person.doing(peer, member) });
    person.figures(doc, id, peer, member);
    person.refused(peer, member);
    person.machine(peer);
    person.links(doc, id);
    const notes = run.notesOf(doc).filter(([, note]) => note.peer === id);
    nodes.set(nodes.byId("peer-no-notes"), { hidden: notes.length > 0 });
    run.listed(nodes.byId("peer-notes"), notes);
  },

  doing(peer, member) {
    if (!peer) return "Perhaps it belongs to another run, or has not joined yet.";
    if (peer.banned) return `The organizer has banned it: ${peer.banned}.`;
    if (member && member.waits) return `It ${member.waits}.`;
    if (member) return member.state === "ready" ? `It is at work at stage ${member.stage}.` : `It is ${member.state}.`;
    return `It is not here now${peer.why ? `: ${peer.why}` : ""}.`;
  },

  figures(doc, id, peer, member) {
    if (!peer) { nodes.figures(nodes.byId("peer-figures"), []); return; }
    const of = member || {}, ranked = board.ranked(doc), [, , rank] = ranked.find(([other]) => other === id);
    const pace = of.forward ? 1 / (of.forward + of.backward) : 0;
    nodes.figures(nodes.byId("peer-figures"), [
      ["Credit", format.number(peer.credit, 1), `rank ${format.number(rank)} of ${format.number(ranked.length)}`],
      ["Work accepted", format.number(peer.counted), "microbatches in updates"],
      ["Share of stage", format.percent(of.share), member ? `stage ${member.stage}` : ""],
      ["Online", format.seconds(board.online(peer, doc.at)), peer.losses ? (peer.losses === 1 ? "lost once" : `lost ${format.number(peer.losses)} times`) : "never lost"],
      ["Throughput", pace ? `${format.short(pace)} visits/s` : NOTHING, of.forward ? `forward ${format.seconds(of.forward)}, backward ${format.seconds(of.backward)}` : ""],
      ["Open visits", format.number(of.open), of.below ? `${format.number(of.below)} of them wait for the next stage` : ""],
      ["Version", format.number(of.version), "of its parameters"],
    ]);
  },

  refused(peer, member) {
    const reasons = Object.entries((member && member.refused) || {}).sort((a, b) => b[1] - a[1]).map(([reason, count]) => [reason, format.capital(reason.toLowerCase().replaceAll("_", " ")), count]);
    const rows = [...reasons, ...(member && member.busy ? [["busy", "Busy: its queue was full, others took it", member.busy]] : [])];
    nodes.set(nodes.byId("peer-none-refused"), { hidden: rows.length > 0, text: member ? "None." : "Not known: it is not here now." });
    nodes.set(nodes.byId("peer-refused").parentNode, { hidden: !rows.length });
    nodes.keep(nodes.byId("peer-refused"), rows.map(([key, words, count]) => [key, { words, count }]), nodes.row, (row, { words, count }) => nodes.cells(row, [{ text: words, head: true }, { text: format.number(count), class: "number" }]));
  },

  machine(peer) {
    const rows = !peer ? [] : [["Device", peer.device], ["Memory it lends", peer.memory ? format.bytes(peer.memory) : ""], ["Link it lends", peer.up || peer.down ? `${format.rate(peer.up)} up, ${format.rate(peer.down)} down` : ""], ["Reached", peer.relayed ? "through a relay" : "directly"], ["Software", peer.version], ["First seen", format.clock(peer.first_at)]];
    nodes.keep(nodes.byId("peer-machine"), rows.map((row) => [row[0], row[1] || NOTHING]), (key) => nodes.make("div", {}, [nodes.make("dt", { text: key }), nodes.make("dd")]), (node, text) => nodes.set(node.lastChild, { text }));
  },

  links(doc, id) {
    const all = Object.entries(doc.links || {}).filter(([, link]) => link.near === id).sort((a, b) => a[1].rate - b[1].rate);
    nodes.set(nodes.byId("peer-no-links"), { hidden: all.length > 0 });
    nodes.set(nodes.byId("peer-links").parentNode, { hidden: !all.length });
    const peers = doc.peers || {};
    nodes.keep(nodes.byId("peer-links"), all, nodes.row, (row, link) => nodes.cells(row, [
      { text: `${(peers[link.far] || {}).name || link.far.slice(-8)}${link.relayed ? " (relayed)" : ""}`, href: `#peer=${link.far}`, head: true }, { text: format.rate(link.rate), class: "number" }, { text: format.seconds(link.round_trip), class: "number" },
    ]));
  },
};
