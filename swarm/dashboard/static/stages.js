"use strict";
/* The stage map: each stage a lane of its peers. A lane of many is a field of small squares beside its sums. */
const stages = {
  CARDS: 8,

  map(doc) {
    const about = doc.run || {}, entries = Object.entries(doc.stages || {});
    const members = new Map(entries.map(([key]) => [key, []]));
    for (const entry of Object.entries(doc.members || {})) { const lane = members.get(String(entry[1].stage)); if (lane) lane.push(entry); }
    const rates = entries.map(([, stage]) => stage.rate), most = Math.max(0, ...rates), least = Math.min(...rates);
    nodes.set(nodes.byId("no-stages"), { hidden: entries.length > 0 });
    const isCrowd = [...members.values()].some((here) => here.length > stages.CARDS);
    const told = [about.activations ? `Activations go down as ${about.activations}, gradients come back as ${about.gradients}.` : "", isCrowd ? "Squares: the darker, the more traffic; dashed: loading; round: leaving." : ""];
    nodes.set(nodes.byId("stages-words"), { text: told.join(" ") });
    nodes.keep(nodes.byId("stages"), entries, stages.lane, (lane, stage, key) => stages.fill(doc, lane, stage, key, members.get(key), most, least));
  },

  lane(key) {
    return nodes.make("li", { class: "lane" }, [
      nodes.make("div", { class: "head" }, [
        nodes.make("h3", {}, [nodes.make("span", { text: `Stage ${key}` }), nodes.make("span", { class: "tag", hidden: true })]),
        nodes.make("p", { class: "about" }),
        nodes.make("div", { class: "meter pace", "aria-hidden": "true" }, [nodes.make("span")]),
        nodes.make("p", { class: "about" }),
      ]),
      nodes.make("div", { class: "crowd" }, [
        nodes.make("p", { class: "about sums" }),
        nodes.make("ul", { class: "seats", "aria-label": `Peers of stage ${key}` }),
        nodes.make("div", { class: "field", "aria-hidden": "true" }),
      ]),
    ]);
  },

  fill(doc, lane, stage, key, here, most, least) {
    const isBegun = doc.phase !== "gathering", isOver = ["standby", "finished", "stopped"].includes(doc.phase);
    const isEmpty = !isOver && !here.some(([, member]) => member.state === "ready");
    nodes.set(lane, { "data-slowest": stage.is_slowest && !isOver ? "true" : null, "data-empty": isEmpty && isBegun ? "true" : null });
    const [head, crowd] = lane.children, [title, layers, meter, pace] = head.children, [sums, seats, field] = crowd.children;
    nodes.set(title.lastChild, { hidden: isOver || !(stage.is_slowest || isEmpty), text: !isEmpty ? "bottleneck" : isBegun ? "no replica" : "no replica yet", "data-tone": isEmpty && isBegun ? "bad" : "warn" });
    nodes.set(layers, { text: `${stage.layers ? `Layers ${stage.layers[0]} to ${stage.layers[1]} · ` : ""}queue ${format.number(stage.queue)}` });
    nodes.set(meter.firstChild, { width: most ? stage.rate / most : 0 });
    const times = stage.rate && least ? stage.rate / least : 1;
    const spare = times >= 3 ? `, ${format.short(times)} times the narrowest` : times > 1.005 ? `, ${format.percent(times - 1)} to spare` : "";
    nodes.set(pace, { text: stage.rate ? `${format.short(stage.rate)} visits a second at most${spare}` : "Pace not known yet" });
    const isCrowd = here.length > stages.CARDS;
    nodes.set(sums, { hidden: !isCrowd && here.length > 0, text: isCrowd ? stages.summed(here) : here.length ? "" : "No peer is here." });
    nodes.set(seats, { hidden: isCrowd || !here.length });
    nodes.set(field, { hidden: !isCrowd });
    const peers = doc.peers || {}, nameOf = (member) => (peers[member.peer] || {}).name || member.peer.slice(-8);
    nodes.keep(seats, isCrowd ? [] : here, stages.seat, (seat, member) => stages.sit(seat.firstChild, member, nameOf(member)));
    const busiest = Math.max(0.0001, ...here.map(([, member]) => member.share || 0));
    nodes.keep(field, isCrowd ? here : [], () => nodes.make("a", { class: "square", tabindex: "-1" }, [nodes.make("span")]), (square, member) => {
      nodes.set(square, { href: `#peer=${member.peer}`, "data-state": member.state, title: `${nameOf(member)}: ${stages.facts(member).join(", ")}` });
      nodes.set(square.firstChild, { "data-level": Math.ceil((4 * (member.share || 0)) / busiest) });
    });
  },

  seat() {
    return nodes.make("li", {}, [nodes.make("a", { class: "seat" }, [
      nodes.make("span", { class: "name" }, [nodes.make("span"), nodes.make("span", { class: "mark-state" }, [nodes.icon("loading"), nodes.make("span")])]),
      nodes.make("span", { class: "meter", "aria-hidden": "true" }, [nodes.make("span")]),
      nodes.make("span", { class: "facts" }, ["share", "queue", "version"].map((name) => nodes.make("span", {}, [nodes.make("span", { class: "what", text: name }), " ", nodes.make("span")]))),
      nodes.make("span", { class: "doing" }),
    ])]);
  },

  sit(card, member, name) {
    const [title, meter, facts, doing] = card.children, mark = title.lastChild;
    nodes.set(card, { href: `#peer=${member.peer}` });
    nodes.set(title.firstChild, { text: name, title: name });
    nodes.set(mark, { "data-tone": TONES[member.state] || "none" });
    nodes.set(mark.querySelector("use"), { href: `#i-${member.state === "ready" ? "training" : member.state}` });
    nodes.set(mark.lastChild, { text: member.state });
    nodes.set(meter.firstChild, { width: member.share || 0 });
    for (const [number, text] of [format.percent(member.share), format.number(stages.queue(member)), member.version === undefined ? NOTHING : format.number(member.version)].entries()) nodes.set(facts.children[number].lastChild, { text });
    const words = member.waits || (member.state === "ready" ? "at work" : "");
    nodes.set(doing, { text: words, title: words });
  },

  /* Visits that are open there and wait for nobody else. */
  queue(member) { return Math.max(0, (member.open ?? 0) - (member.below ?? 0)); },

  facts(member) {
    return [member.state, `${format.percent(member.share)} of the traffic`, `queue ${format.number(stages.queue(member))}`, `version ${member.version === undefined ? NOTHING : format.number(member.version)}`];
  },

  summed(here) {
    const states = new Map();
    for (const [, member] of here) states.set(member.state, (states.get(member.state) || 0) + 1);
    const queues = here.map(([, member]) => stages.queue(member));
    const versions = here.map(([, member]) => member.version).filter((version) => version !== undefined);
    const range = versions.length ? [Math.min(...versions), Math.max(...versions)] : null;
    return [`${format.count(here.length, "peer")}: ${[...states].map(([state, count]) => `${format.number(count)} ${state}`).join(", ")}`,
      `longest queue ${format.number(Math.max(...queues))}`, `busiest ${format.percent(Math.max(...here.map(([, member]) => member.share || 0)))} of the traffic`,
      range ? (range[0] === range[1] ? `version ${format.number(range[0])}` : `versions ${format.number(range[0])} to ${format.number(range[1])}`) : ""].filter(Boolean).join(" · ");
  },
};
