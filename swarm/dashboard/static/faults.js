"use strict";
/* Every loss of a peer: how soon it was found and its work rerouted, and what was run again. */
const faults = {
  list(doc) {
    const all = Object.entries(doc.faults || {}).sort((a, b) => b[1].at - a[1].at || Number(b[0]) - Number(a[0]));
    const found = all.map(([, fault]) => fault);
    nodes.set(nodes.byId("no-faults"), { hidden: all.length > 0 });
    nodes.set(nodes.byId("faults-box"), { hidden: !all.length });
    const rerouted = found.map((fault) => fault.rerouted).filter((seconds) => seconds != null);
    const words = all.length ? [`found after ${format.seconds(format.median(found.map((fault) => fault.silent)))}`, rerouted.length ? `rerouted in ${format.seconds(format.median(rerouted))}` : ""].filter(Boolean).join(", ") : "";
    nodes.set(nodes.byId("faults-words"), { text: words ? `${format.count(all.length, "loss", "losses")}; the median ${words}` : "" });
    const longest = Math.max(0.001, ...found.map((fault) => fault.silent + (fault.rerouted || 0)));
    nodes.keep(nodes.byId("faults"), nodes.limited(all, nodes.byId("faults-more"), 10, "losses"), nodes.row, (row, fault) => {
      const second = fault.rerouted != null ? `, in ${format.seconds(fault.rerouted)}` : fault.rerun ? ", not yet" : ", nothing was open";
      nodes.cells(row, [
        { text: fault.name, href: `#peer=${fault.peer}`, head: true, class: "who" },
        { text: `${fault.silent ? `after ${format.seconds(fault.silent)}` : "at once"}${second}`, parts: [fault.silent / longest, (fault.rerouted || 0) / longest] },
        { text: format.count(fault.rerun, "microbatch", "microbatches"), class: "number" }, { text: fault.stage, class: "number" }, { text: format.number(fault.at_step), class: "number" },
        format.clock(fault.at), { text: fault.why, class: "words" },
      ]);
    });
  },
};
