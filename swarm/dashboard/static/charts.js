"use strict";
/* The loss over the steps, with the held-out points and the steps at which peers were lost: plain SVG. */
const charts = {
  svg(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  },
  ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= raw);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + 1e-9; at += step) found.push(at);
    return found;
  },
  loss(place, document_) {
    const steps = Object.entries(document_.steps || {}).map(([step, row]) => [Number(step), row[0]]).sort((a, b) => a[0] - b[0]);
    const heldout = Object.entries(document_.heldout || {}).map(([version, loss]) => [Number(version), loss]).sort((a, b) => a[0] - b[0]);
    const words = nodes.byId("loss-words");
    if (!steps.length && !heldout.length) { place.replaceChildren(); nodes.set(words, { text: "No step has been finished yet." }); return; }
    const width = 560, height = 250, left = 46, right = 12, top = 12, bottom = 28;
    const all = [...steps, ...heldout].map((point) => point[1]);
    let low = Math.min(...all), high = Math.max(...all);
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1;
    low -= pad; high += pad;
    const last = Math.max(1, ...steps.map((point) => point[0] + 1), ...heldout.map((point) => point[0]));
    const x = (step) => left + ((width - left - right) * step) / last;
    const y = (loss) => top + ((height - top - bottom) * (high - loss)) / (high - low);
    const svg = charts.svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": "loss-title loss-words" });
    for (const at of charts.ticks(low, high, 5)) {
      svg.append(charts.svg("line", { class: "grid", x1: left, x2: width - right, y1: y(at), y2: y(at) }));
      svg.append(charts.svg("text", { x: left - 6, y: y(at) + 4, "text-anchor": "end" }, Math.abs(at) > 1e6 ? at.toExponential(1) : String(Number(at.toPrecision(4)))));
    }
    for (const at of charts.ticks(0, last, 6).filter((each) => Number.isInteger(each))) {
      svg.append(charts.svg("text", { x: x(at), y: height - 8, "text-anchor": "middle" }, String(at)));
    }
    for (const fault of Object.values(document_.faults || {})) {
      const at = x(Math.min(fault.at_step, last));
      const line = charts.svg("line", { class: "fault", x1: at, x2: at, y1: top, y2: height - bottom });
      line.append(charts.svg("title", {}, `${fault.name} of stage ${fault.stage} lost at step ${fault.at_step}`));
      svg.append(line);
    }
    // A step's loss is drawn where its update ends, so that held-out points of versions lie on the same axis.
    svg.append(charts.svg("polyline", { class: "line", points: steps.map(([step, loss]) => `${x(step + 1).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") }));
    for (const [version, loss] of heldout) {
      const point = charts.svg("circle", { class: "point", cx: x(version), cy: y(loss), r: 4.5 });
      point.append(charts.svg("title", {}, `held-out loss ${format.loss(loss)} at version ${version}`));
      svg.append(point);
    }
    place.replaceChildren(svg);
    const told = steps.length ? `Training loss ${format.loss(steps[0][1])} at first, ${format.loss(steps[steps.length - 1][1])} now (nats a token). ` : "";
    nodes.set(words, { text: told + (heldout.length ? `Held out (circles): ${heldout.map((point) => format.loss(point[1])).slice(-4).join(", then ")}.` : "") });
  },
};
