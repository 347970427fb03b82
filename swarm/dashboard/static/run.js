"use strict";
/* The run: its strip, its stages, what it needs, its faults, its links. */
const TONES = { training: "good", finished: "good", ready: "good", waiting: "bad", stopped: "bad", gone: "bad", paused: "warn", draining: "warn", loading: "warn", gathering: "warn", standby: "warn" };

const run = {
  strip(doc) {
    const progress = doc.progress || {}, about = doc.run || {}, ledger = doc.ledger || {};
    nodes.set(nodes.byId("model"), { text: about.model ? `${about.model}, ${about.mode} on ${about.base}` : "" });
    nodes.set(nodes.byId("phase"), { text: doc.phase || "", "data-tone": TONES[doc.phase] || null });
    nodes.set(nodes.byId("sentence"), { text: doc.sentence || "" });
    document.title = `${doc.phase || "swarm"}${progress.step >= 0 ? `, step ${progress.step + 1}` : ""} – swarm-peer`;
    let share = progress.ideal_tokens_per_second ? progress.tokens_per_second / progress.ideal_tokens_per_second : null;
    if (share > 1) share = null; // a peer is just gone: the pace is still that of before
    const done = (progress.step ?? -1) + 1;
    nodes.figures(nodes.byId("figures"), [
      ["Step", `${format.number(done)} of ${format.number(about.steps)}`, `${format.number(progress.tokens)} tokens learned`],
      ["Loss", format.loss(progress.loss), progress.heldout === null || progress.heldout === undefined ? "" : `held out ${format.loss(progress.heldout)}`],
      ["Tokens a second", format.number(progress.tokens_per_second), share === null ? "" : `${format.percent(share)} of what ideal links would give`],
      ["Time left", format.seconds(progress.seconds_left), `staleness ${about.staleness ?? "–"}: ${about.staleness ? "updates one step late" : "synchronous"}`],
    ]);
    const bar = nodes.byId("bar");
    nodes.set(bar, { "aria-valuemax": about.steps || 1, "aria-valuenow": done });
    bar.firstElementChild.style.width = `${(100 * done) / (about.steps || 1)}%`;
    const promise = nodes.byId("promise");
    if (!promise.firstChild) promise.append(nodes.make("span", { class: "tag" }), nodes.make("span", { class: "tag" }), nodes.make("span"));
    nodes.set(promise.children[0], { text: `lost ${ledger.lost ?? 0}`, "data-tone": ledger.lost ? "bad" : "good" });
    nodes.set(promise.children[1], { text: `duplicated ${ledger.duplicated ?? 0}`, "data-tone": ledger.duplicated ? "bad" : "good" });
    nodes.set(promise.children[2], { text: `of ${format.number(ledger.microbatches)} microbatches; ${format.number(ledger.faults)} ${ledger.faults === 1 ? "peer" : "peers"} lost, ${format.number(ledger.reissued)} stage-visits run again` });
  },

  stages(doc) {
    const about = doc.run || {};
    const members = Object.entries(doc.members || {});
    nodes.keep(nodes.byId("stages"), Object.entries(doc.stages || {}), (key) => nodes.make("li", { class: "lane" }, [
      nodes.make("div", {}, [nodes.make("h3", {}, [nodes.make("span", { text: `Stage ${key}` }), nodes.make("span", { class: "tag", "data-tone": "warn" })]), nodes.make("p", { class: "about" }), nodes.make("p", { class: "about" })]),
      nodes.make("div", { class: "seats", role: "list", "aria-label": `Peers of stage ${key}` }),
    ]), (lane, stage, key) => {
      const here = members.filter(([, member]) => String(member.stage) === key);
      nodes.set(lane, { "data-slowest": stage.is_slowest, "data-empty": !stage.replicas });
      const tag = lane.querySelector(".tag");
      nodes.set(tag, { text: stage.replicas ? "bottleneck" : "no replica", hidden: stage.is_slowest || !stage.replicas ? null : "" , "data-tone": stage.replicas ? "warn" : "bad" });
      const [layers, pace] = lane.querySelectorAll(".about");
      nodes.set(layers, { text: stage.layers ? `layers ${stage.layers[0]} to ${stage.layers[1]}; queue ${stage.queue}` : `queue ${stage.queue}` });
      nodes.set(pace, { text: stage.rate ? `${stage.rate.toFixed(2)} visits a second at most` : "pace not known yet" });
      nodes.keep(lane.querySelector(".seats"), here, () => nodes.make("a", { class: "seat", role: "listitem" }, [
        nodes.make("div", { class: "name" }, [nodes.make("span"), nodes.make("span", { class: "tag" })]),
        nodes.make("div", { class: "meter", "aria-hidden": "true" }, [nodes.make("span")]),
        nodes.make("div", { class: "facts" }), nodes.make("div", { class: "facts" }),
      ]), (seat, member) => {
        const peer = (doc.peers || {})[member.peer] || {};
        nodes.set(seat, { href: `#peer=${member.peer}` });
        nodes.set(seat.querySelector(".name").firstChild, { text: peer.name || member.peer.slice(-8) });
        nodes.set(seat.querySelector(".tag"), { text: member.state, "data-tone": TONES[member.state] });
        seat.querySelector(".meter span").style.width = format.percent(member.share || 0).replace(" ", "");
        const [first, second] = seat.querySelectorAll(".facts");
        nodes.set(first, { text: `${format.percent(member.share)} of the traffic, queue ${Math.max(0, (member.open ?? 0) - (member.below ?? 0))}, version ${member.version ?? "–"}` });
        nodes.set(second, { text: member.waits ? member.waits : `${about.activations} down, ${about.gradients} back` });
      });
    });
  },

  needs(doc) {
    const place = nodes.byId("needs"), need = doc.needs;
    if (!need) { place.replaceChildren(nodes.make("p", { class: "none", text: doc.phase === "finished" ? "Nothing any more: the run is finished." : "Not known yet: the stages have not been measured." })); return; }
    if (!place.querySelector(".need")) {
      const code = nodes.make("code"), copy = nodes.make("button", { type: "button", text: "Copy" });
      copy.addEventListener("click", async () => {
        try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; }
        catch { const range = document.createRange(); range.selectNodeContents(code); getSelection().removeAllRanges(); getSelection().addRange(range); copy.textContent = "Selected"; }
        setTimeout(() => { copy.textContent = "Copy"; }, 1500);
      });
      place.replaceChildren(nodes.make("p", { class: "need" }), nodes.make("dl", { class: "figures small" }), nodes.make("div", { class: "command" }, [code, copy]));
    }
    const faster = need.speed_up > 1.005 ? `${format.percent(need.speed_up - 1)} faster` : need.speed_up ? "no faster, but safer" : "–";
    nodes.set(place.querySelector(".need"), { text: `One more machine at stage ${need.stage}: ${need.why} (${need.replicas} ${need.replicas === 1 ? "replica" : "replicas"}).` });
    nodes.figures(place.querySelector("dl"), [["Memory", need.memory ? format.bytes(need.memory) : "–"], ["Link, each way", format.rate(need.bandwidth)], ["With it", faster]]);
    nodes.set(place.querySelector("code"), { text: need.command || "" });
    place.querySelector(".command").hidden = !need.command;
  },

  faults(doc) {
    const faults = Object.entries(doc.faults || {}).sort((a, b) => b[1].at - a[1].at);
    nodes.byId("no-faults").hidden = faults.length > 0;
    nodes.keep(nodes.byId("faults"), faults, () => nodes.make("tr"), (row, fault) => nodes.cells(row, [
      { text: fault.name, href: `#peer=${fault.peer}`, head: true }, String(fault.stage), String(fault.at_step), format.seconds(fault.silent),
      fault.rerun ? format.seconds(fault.rerouted) : "nothing open", `${fault.rerun} microbatches`, { text: fault.why, class: "words" },
    ]));
  },

  links(doc) {
    const wire = doc.wire || {}, links = Object.entries(doc.links || {});
    const sent = (wire.activation_bytes || 0) + (wire.gradient_bytes || 0) + (wire.reduce_bytes || 0);
    nodes.figures(nodes.byId("wire"), [
      ["Sent by peers", format.bytes(sent), `activations ${format.bytes(wire.activation_bytes)}, gradients ${format.bytes(wire.gradient_bytes)}, sums ${format.bytes(wire.reduce_bytes)}`],
      ["Saved by compression", format.bytes(wire.saved_bytes), `${(doc.run || {}).activations || ""} and ${(doc.run || {}).gradients || ""}, against fp32`],
      ["Through the trainer", format.bytes(wire.trainer_bytes), "token ids and control"],
    ]);
    nodes.byId("no-links").hidden = links.length > 0;
    const name = (peer) => ((doc.peers || {})[peer] || {}).name || peer.slice(-8);
    nodes.keep(nodes.byId("links"), links, () => nodes.make("tr"), (row, link) => nodes.cells(row, [
      { text: name(link.far), head: true }, name(link.near), format.rate(link.rate), format.seconds(link.round_trip), link.relayed ? "relayed" : "direct",
    ]));
  },

  notes(doc) {
    const notes = Object.entries(doc.notes || {}).sort((a, b) => Number(b[0]) - Number(a[0]));
    nodes.keep(nodes.byId("notes"), notes, (key, note) => nodes.make("li", {}, [nodes.make("time", { text: format.clock(note.at) }), nodes.make("span")]),
      (node, note) => nodes.set(node.lastChild, { text: note.text }));
  },

  kept(doc) {
    const kept = Object.values(doc.kept || {});
    nodes.byId("no-kept").hidden = kept.length > 0;
    const files = kept.flatMap((each, number) => each.files.map((file) => [`${number}/${file.name}`, { ...file, number, what: each.what, version: each.version }]));
    nodes.keep(nodes.byId("kept"), files, (key) => nodes.make("li", {}, [nodes.make("a"), nodes.make("span"), nodes.make("br"), nodes.make("code")]), (node, file) => {
      nodes.set(node.children[0], { href: `/files/${file.number}/${file.name}`, text: file.name, download: file.name });
      nodes.set(node.children[1], { text: ` ${format.bytes(file.bytes)}, ${file.what} of version ${file.version}` });
      nodes.set(node.children[3], { text: `SHA-256 ${file.sha256}` });
    });
  },
};
