"use strict";
/* The run itself: its state in one sentence, its figures, what it needs, what happened, what can be downloaded. */
const TONES = { training: "good", finished: "good", ready: "good", waiting: "bad", stopped: "bad", gone: "none", paused: "warn", draining: "warn", loading: "warn", gathering: "warn", standby: "none", unknown: "none" };

const run = {
  strip(doc) {
    const progress = doc.progress || {}, about = doc.run || {}, members = Object.values(doc.members || {});
    nodes.set(nodes.byId("model"), { text: about.model ? `${about.model} · ${about.mode === "lora" ? "LoRA" : about.mode} on ${about.base}` : "" });
    nodes.set(nodes.byId("run"), { "data-tone": TONES[doc.phase] || "none" });
    nodes.set(nodes.byId("phase-mark"), { "data-tone": TONES[doc.phase] || "none" });
    nodes.set(nodes.byId("phase-mark").querySelector("use"), { href: `#i-${doc.phase in TONES ? doc.phase : "gathering"}` });
    nodes.set(nodes.byId("phase"), { text: doc.phase || "" });
    nodes.set(nodes.byId("sentence"), { text: doc.sentence || "" });
    const done = (progress.step ?? -1) + 1, share = about.steps ? done / about.steps : 0;
    const bar = nodes.byId("bar");
    nodes.set(bar, { "aria-valuemax": about.steps || 1, "aria-valuenow": done, "aria-valuetext": `${format.number(done)} of ${format.number(about.steps)} steps` });
    nodes.set(bar.firstElementChild, { width: share });
    nodes.set(nodes.byId("progress-words"), { text: about.steps ? `Step ${format.number(done)} of ${format.number(about.steps)} · ${format.percent(share)}` : "" });
    const isOver = doc.phase === "finished" || doc.phase === "stopped";
    const left = isOver && doc.at > about.began_at ? `ran for ${format.seconds(doc.at - about.began_at)}` : doc.phase === "training" && progress.seconds_left ? `about ${format.seconds(progress.seconds_left)} left` : "";
    nodes.set(nodes.byId("progress-left"), { text: left });
    const ideal = progress.ideal_tokens_per_second ? progress.tokens_per_second / progress.ideal_tokens_per_second : null;
    const states = (name) => members.filter((member) => member.state === name).length;
    const others = [["loading", states("loading")], ["leaving", states("draining")]].filter(([, count]) => count).map(([name, count]) => `${format.number(count)} ${name}`);
    nodes.figures(nodes.byId("figures"), [
      ["Loss", format.loss(progress.loss), "nats a token, training"],
      ["Held out", format.loss(progress.heldout), "on text it is not trained on"],
      ["Tokens a second", format.number(progress.tokens_per_second), progress.tokens ? `${format.short(progress.tokens)} tokens learned` : ""],
      // A peer that has just gone leaves the pace of before beside the ideal of now.
      ["Of ideal links", ideal === null || ideal > 1 ? NOTHING : format.percent(ideal), "were no link in the way"],
      ["Staleness", about.staleness === undefined ? NOTHING : format.count(about.staleness, "step"), about.staleness ? "updates come one step late" : "updates wait for every peer"],
      ["Peers at work", format.number(states("ready")), others.join(", ") || `at ${format.count(about.stages || 0, "stage")}`],
    ]);
    run.promise(doc);
  },

  promise(doc) {
    const ledger = doc.ledger || {}, place = nodes.byId("promise");
    if (!place.firstChild) {
      const badge = () => nodes.make("p", { class: "badge" }, [nodes.icon("finished"), nodes.make("strong")]);
      place.append(badge(), badge(), nodes.make("p", { class: "told" }));
    }
    for (const [number, [name, count]] of [["lost", ledger.lost ?? 0], ["duplicated", ledger.duplicated ?? 0]].entries()) {
      const badge = place.children[number];
      nodes.set(badge, { "data-tone": count ? "bad" : "good" });
      nodes.set(badge.querySelector("use"), { href: count ? "#i-stopped" : "#i-finished" });
      nodes.set(badge.lastChild, { text: `${name} ${format.number(count)}` });
    }
    const isWhole = !ledger.lost && !ledger.duplicated;
    let told = !ledger.microbatches ? "No step is closed yet." : isWhole ? `Each of ${format.count(ledger.microbatches, "microbatch", "microbatches")} is in its update exactly once.` : `Of ${format.count(ledger.microbatches, "microbatch", "microbatches")}, some are not in their update exactly once.`;
    if (ledger.faults) told += ` ${format.count(ledger.faults, "peer was", "peers were")} lost on the way; ${format.count(ledger.reissued, "stage visit was", "stage visits were")} run again.`;
    nodes.set(place.lastChild, { text: told });
  },

  needs(doc) {
    const place = nodes.byId("needs"), need = doc.needs;
    if (!place.firstChild) {
      const code = nodes.make("code");
      const copy = nodes.copying(nodes.make("button", { type: "button", class: "copy", text: "Copy command" }), code, () => code.textContent);
      place.append(nodes.make("p", { class: "need" }), nodes.make("dl", { class: "figures small" }), nodes.make("div", { class: "command" }, [code, copy]), nodes.make("p", { class: "hint", text: "Faster by compute alone, for a machine like those that are there. Any machine that can hold the stage helps; the run moves peers to where they are short." }));
    }
    const [words, list, command, hint] = place.children;
    const isOver = doc.phase === "finished" || doc.phase === "stopped";
    const text = need ? `One more machine at stage ${need.stage}: ${need.why} (${need.replicas ? format.count(need.replicas, "replica") : "none is there"}).` : isOver ? "Nothing any more: the run is over." : "Not known yet: it takes a few steps to see which stage is the narrowest.";
    nodes.set(words, { text });
    const faster = !need || !need.speed_up ? NOTHING : need.speed_up > 1.005 ? `${format.percent(need.speed_up - 1)} faster` : "safer";
    nodes.figures(list, need ? [["Memory", need.memory ? format.bytes(need.memory) : NOTHING, "to hold the stage"], ["Link, each way", format.rate(need.bandwidth), "to keep it busy"], ["The run with it", faster, faster === "safer" ? "as fast, with one spare more" : ""]] : []);
    nodes.set(command, { hidden: !(need && need.command) });
    nodes.set(command.firstChild, { text: need ? need.command : "" });
    nodes.set(hint, { hidden: !need });
  },

  TONE_OF_NOTE: { lost: "bad", banned: "bad", waiting: "bad", left: "warn", draining: "warn", paused: "warn", ready: "good", rerouted: "good", kept: "good", evaluated: "accent", resumed: "good", concluded: "accent" },
  listed(place, notes) {
    nodes.keep(place, notes, (key, note) => nodes.make("li", { "data-tone": run.TONE_OF_NOTE[note.kind] || "none" }, [nodes.make("time", { text: format.clock(note.at) }), nodes.icon("dot"), nodes.make(note.peer ? "a" : "span", note.peer ? { href: `#peer=${note.peer}` } : {})]),
      (node, note) => nodes.set(node.lastChild, { text: note.text }));
  },
  notesOf(doc) { return Object.entries(doc.notes || {}).sort((a, b) => Number(b[0]) - Number(a[0])); },
  notes(doc) {
    const notes = run.notesOf(doc);
    nodes.set(nodes.byId("no-notes"), { hidden: notes.length > 0 });
    run.listed(nodes.byId("notes"), notes);
  },

  kept(doc) {
    const files = Object.entries(doc.kept || {}).flatMap(([number, each]) => each.files.map((file) => [`${number}/${file.name}`, { ...file, number, what: each.what, version: each.version }]));
    nodes.set(nodes.byId("no-kept"), { hidden: files.length > 0 });
    nodes.keep(nodes.byId("kept"), files, () => {
      const sum = nodes.make("code");
      return nodes.make("li", {}, [nodes.make("p", { class: "file" }, [nodes.make("a"), nodes.make("span", { class: "size" })]), nodes.make("p", { class: "sum" }, [nodes.make("span", { text: "SHA-256" }), sum, nodes.copying(nodes.make("button", { type: "button", class: "copy", text: "Copy" }), sum, () => sum.textContent)])]);
    }, (node, file) => {
      const [link, size] = node.firstChild.children;
      // A past run's files may be gone: only who leads it can give them.
      nodes.set(link, { href: doc.live ? `/files/${file.number}/${encodeURIComponent(file.name)}` : null, text: file.name, download: file.name });
      nodes.set(size, { text: `${format.bytes(file.bytes)} · ${file.what} of version ${format.number(file.version)}` });
      nodes.set(node.lastChild.children[1], { text: file.sha256 });
      nodes.set(node.lastChild.lastChild, { "aria-label": `Copy the SHA-256 of ${file.name}` });
    });
  },
};
