"use strict";
/* What goes over the wire, and the links as peers have measured them: between stages first, then one by one. */
const links = {
  list(doc) {
    const wire = doc.wire || {}, about = doc.run || {}, peers = doc.peers || {};
    const plain = (wire.activation_bytes || 0) + (wire.gradient_bytes || 0), sent = plain + (wire.reduce_bytes || 0);
    const share = plain + (wire.saved_bytes || 0) ? wire.saved_bytes / (plain + wire.saved_bytes) : null;
    nodes.figures(nodes.byId("wire"), [
      ["Sent by peers", format.bytes(sent), `activations ${format.bytes(wire.activation_bytes)}, gradients ${format.bytes(wire.gradient_bytes)}, sums ${format.bytes(wire.reduce_bytes)}`],
      ["Saved by compression", format.bytes(wire.saved_bytes), share ? `${format.percent(share)} less between stages than fp32, by ${about.activations} and ${about.gradients}` : ""],
      ["Through the trainer", format.bytes(wire.trainer_bytes), "token ids and control, no activations"],
    ]);
    const all = Object.entries(doc.links || {});
    nodes.set(nodes.byId("no-links"), { hidden: all.length > 0 });
    nodes.set(nodes.byId("links-box"), { hidden: !all.length });
    const stageOf = (peer) => (peers[peer] || {}).stage ?? null;
    const cuts = new Map();
    for (const [, link] of all) {
      const ends = [stageOf(link.far), stageOf(link.near)].sort((a, b) => a - b);
      const key = ends.includes(null) ? "others" : ends.join(" ");
      if (!cuts.has(key)) cuts.set(key, { ends, links: [] });
      cuts.get(key).links.push(link);
    }
    const sorted = [...cuts].sort((a, b) => a[1].ends[0] - b[1].ends[0] || a[1].ends[1] - b[1].ends[1]);
    nodes.keep(nodes.byId("cuts"), sorted, nodes.row, (row, cut, key) => {
      const rates = cut.links.map((link) => link.rate).filter(Boolean), relayed = cut.links.filter((link) => link.relayed).length;
      const [low, high] = cut.ends;
      nodes.cells(row, [
        { text: key === "others" ? "other peers" : low === high ? `replicas of stage ${low}` : `stage ${low} and ${high}`, head: true }, { text: format.number(cut.links.length), class: "number" },
        { text: format.rate(format.median(rates)), class: "number" }, { text: rates.length ? format.rate(Math.min(...rates)) : NOTHING, class: "number" },
        { text: format.seconds(format.median(cut.links.map((link) => link.round_trip))), class: "number" }, relayed ? `${format.number(relayed)} relayed` : "direct",
      ]);
    });
    nodes.set(nodes.byId("links-summary"), { text: `Every link, the slowest first (${format.number(all.length)})` });
    if (!nodes.byId("links-summary").parentNode.open) return;
    const name = (peer) => (peers[peer] || {}).name || peer.slice(-8);
    all.sort((a, b) => a[1].rate - b[1].rate);
    nodes.keep(nodes.byId("links"), nodes.limited(all, nodes.byId("links-more"), 50, "links"), nodes.row, (row, link) => nodes.cells(row, [
      { text: name(link.far), href: `#peer=${link.far}`, head: true }, { text: name(link.near), href: `#peer=${link.near}` }, { text: format.rate(link.rate), class: "number" }, { text: format.seconds(link.round_trip), class: "number" }, link.relayed ? "relayed" : "direct",
    ]));
  },
};
