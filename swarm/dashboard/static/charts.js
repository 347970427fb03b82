"use strict";
/* Line charts over the steps, in plain SVG: drawn at the size that they have, told in words beside, read off with a pointer. */
class Chart {
  /* `read(x)` gives the lines of text that are shown at the nearest point. */
  constructor(place, name, height, read) {
    this.place = place;
    this.height = height;
    this.read = read;
    this.data = null;
    this.title = nodes.svg("title", { id: `${name}-svg-title` });
    this.words = nodes.svg("desc", { id: `${name}-svg-words` });
    const group = (kind) => nodes.svg("g", { class: kind });
    this.grid = group("grid"); this.labels = group("labels"); this.marks = group("marks"); this.lines = group("lines"); this.points = group("points");
    this.cursor = nodes.svg("line", { class: "cursor", visibility: "hidden" });
    this.spot = nodes.svg("circle", { class: "spot", r: 4, visibility: "hidden" });
    this.svg = nodes.svg("svg", { role: "img", "aria-labelledby": `${name}-svg-title`, "aria-describedby": `${name}-svg-words` }, [this.title, this.words, this.grid, this.labels, this.marks, this.lines, this.points, this.cursor, this.spot]);
    this.tip = nodes.make("div", { class: "tip", "aria-hidden": "true", hidden: true });
    const glass = nodes.make("div", { class: "glass", "aria-hidden": "true" });
    place.append(this.svg, glass, this.tip);
    glass.addEventListener("pointermove", (event) => this.point(event.offsetX));
    glass.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(place);
  }

  /* {title, words, lines: [{kind, points: [[x, y]]}], points: [[x, y]], marks: [x], level, last, label(y)} */
  show(data) { this.data = data; this.draw(); }

  draw() {
    const data = this.data, width = Math.floor(this.place.clientWidth);
    const all = data ? [...data.lines.flatMap((line) => line.points), ...data.points].map((point) => point[1]) : [];
    nodes.set(this.place, { "data-empty": all.length ? null : (data && data.words) || " " });
    if (!all.length || width < 60) return;
    const height = this.height, left = data.left || 44, right = 14, top = 14, bottom = 26;
    const seen = data.level ? [...all, data.level] : all;
    let low = data.fromZero ? 0 : Math.min(...seen), high = Math.max(...seen);
    const pad = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1;
    if (!data.fromZero) low -= pad;
    high += pad;
    const x = (step) => left + ((width - left - right) * step) / Math.max(1, data.last);
    const y = (value) => top + ((height - top - bottom) * (high - value)) / (high - low);
    this.scale = { x, y, left, right, width };
    nodes.set(this.svg, { viewBox: `0 0 ${width} ${height}`, height });
    nodes.set(this.title, { text: data.title });
    nodes.set(this.words, { text: data.words });
    const levels = Chart.ticks(low, high, 4), steps = Chart.ticks(0, data.last, Math.max(2, Math.floor(width / 110))).filter(Number.isInteger);
    nodes.keep(this.grid, levels.map((at, place) => [place, at]), () => nodes.svg("line"), (node, at) => nodes.set(node, { x1: left, x2: width - right, y1: y(at).toFixed(1), y2: y(at).toFixed(1) }));
    const labels = [...levels.map((at) => ({ x: left - 8, y: y(at) + 4, "text-anchor": "end", text: data.label(at) })), ...steps.map((at) => ({ x: x(at), y: height - 6, "text-anchor": "middle", text: format.number(at) }))];
    nodes.keep(this.labels, labels.map((label, place) => [place, label]), () => nodes.svg("text"), (node, label) => nodes.set(node, { ...label, x: label.x.toFixed(1), y: label.y.toFixed(1) }));
    const marks = data.marks.slice(-40).map((at, place) => [place, x(Math.min(at, data.last)).toFixed(1)]);
    nodes.keep(this.marks, marks, () => nodes.svg("g", { class: "fault" }, [nodes.svg("line"), nodes.svg("path")]), (node, at) => {
      nodes.set(node.firstChild, { x1: at, x2: at, y1: top, y2: height - bottom });
      nodes.set(node.lastChild, { d: `M${at - 4},${top - 8}h8l-4,7z` });
    });
    const lines = data.lines.map((line) => [line.kind, line]);
    if (data.level) lines.push(["level", { points: [[0, data.level], [data.last, data.level]] }]);
    nodes.keep(this.lines, lines, (kind) => nodes.svg("polyline", { class: `line ${kind}` }), (node, line) => nodes.set(node, { points: (line.points.length === 1 ? [line.points[0], line.points[0]] : line.points).map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ") }));
    nodes.keep(this.points, data.points.map((point, place) => [place, point]), () => nodes.svg("circle", { class: "point", r: 4 }), (node, point) => nodes.set(node, { cx: x(point[0]).toFixed(1), cy: y(point[1]).toFixed(1) }));
  }

  point(offset) {
    const line = this.data && this.data.lines[0] && this.data.lines[0].points;
    const shown = offset !== null && line && line.length && this.scale;
    nodes.set(this.tip, { hidden: !shown });
    for (const node of [this.cursor, this.spot]) nodes.set(node, { visibility: shown ? "visible" : "hidden" });
    if (!shown) return;
    const { x, y, left, right, width } = this.scale;
    const wanted = ((offset - left) / (width - left - right)) * this.data.last;
    const [at, value] = line.reduce((best, point) => (Math.abs(point[0] - wanted) < Math.abs(best[0] - wanted) ? point : best));
    nodes.set(this.cursor, { x1: x(at), x2: x(at), y1: 14, y2: this.height - 26 });
    nodes.set(this.spot, { cx: x(at), cy: y(value) });
    nodes.keep(this.tip, this.read(at).map((text, place) => [place, text]), () => nodes.make("div"), (node, text) => nodes.set(node, { text }));
    const before = x(at) > width / 2;
    this.tip.style.left = before ? "auto" : `${x(at) + 12}px`;
    this.tip.style.right = before ? `${width - x(at) + 12}px` : "auto";
  }

  static ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= raw * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
    return found;
  }
}

const charts = {
  stepsOf(doc) { return Object.entries(doc.steps || {}).map(([step, row]) => [Number(step), row]).sort((a, b) => a[0] - b[0]); },

  /* The mean of each point and of `reach` neighbours on either side. */
  smoothed(points, reach) {
    const sums = [0];
    for (const [, y] of points) sums.push(sums[sums.length - 1] + y);
    return points.map(([x], place) => {
      const near = Math.min(reach, place, points.length - 1 - place);
      return [x, (sums[place + near + 1] - sums[place - near]) / (2 * near + 1)];
    });
  },

  legend(place, entries) {
    nodes.keep(place, entries.map(([kind, text]) => [kind, text]), (kind) => nodes.make("span", { class: "key" }, [nodes.make("span", { class: `swatch ${kind}` }), nodes.make("span")]), (node, text) => nodes.set(node.lastChild, { text }));
  },

  lossChart: null,
  loss(doc) {
    const steps = charts.stepsOf(doc);
    const heldout = Object.entries(doc.heldout || {}).map(([version, loss]) => [Number(version), loss]).sort((a, b) => a[0] - b[0]);
    const faults = Object.values(doc.faults || {});
    charts.lossChart = charts.lossChart || new Chart(nodes.byId("loss"), "loss", 236, (at) => charts.lossRead(at));
    // A step's loss is drawn where its update ends, so that held-out points of versions lie on the same axis.
    const points = steps.map(([step, row]) => [step + 1, row[0]]);
    charts.lossRead = (at) => {
      const row = (doc.steps || {})[at - 1], held = (doc.heldout || {})[at];
      return [`Step ${format.number(at)}`, row ? `loss ${format.loss(row[0])}` : "", held !== undefined ? `held out ${format.loss(held)}` : "", row && row[4] ? `${format.count(row[4], "visit")} run again` : "",
        ...faults.filter((fault) => fault.at_step === at - 1 || fault.at_step === at).slice(0, 3).map((fault) => `${fault.name} lost`)].filter(Boolean);
    };
    const isLong = points.length > 120;
    const lines = [{ kind: isLong ? "loss faint" : "loss", points }];
    if (isLong) lines.push({ kind: "smooth", points: charts.smoothed(points, Math.round(points.length / 50)) });
    const told = [];
    if (steps.length) told.push(`Training loss ${format.loss(points[0][1])} after the first step, ${format.loss(points[points.length - 1][1])} now (nats a token).`);
    if (heldout.length) told.push(`On the held-out text ${heldout.slice(-3).map(([version, loss]) => `${format.loss(loss)} at version ${format.number(version)}`).join(", ")}.`);
    const words = told.join(" ") || "No step has been finished yet.";
    charts.lossChart.show({ title: "Loss over the steps", words, lines: points.length ? lines : [], points: heldout, marks: faults.map((fault) => fault.at_step), last: Math.max(1, ...points.map((point) => point[0]), ...heldout.map((point) => point[0])),
      label: (value) => (Math.abs(value) > 1e6 ? value.toExponential(1) : String(Number(value.toPrecision(4)))) });
    nodes.set(nodes.byId("loss-words"), { text: words });
    charts.legend(nodes.byId("loss-legend"), steps.length + heldout.length === 0 ? [] : [["loss", "training"], ["held", "held out"], ...(faults.length ? [["fault", "a peer is lost"]] : [])]);
    nodes.set(nodes.byId("loss-rows"), { hidden: !steps.length });
    const rows = steps.slice(-100).reverse().map(([step, row]) => [step, row]);
    nodes.keep(nodes.byId("loss-table"), rows, nodes.row, (node, row, step) => nodes.cells(node, [{ text: format.number(step + 1), head: true }, { text: format.loss(row[0]), class: "number" },
      { text: format.loss((doc.heldout || {})[step]), class: "number" }, { text: format.number(row[2], 1), class: "number" }, { text: format.number(row[4]), class: "number" }]));
  },

  paceChart: null,
  pace(doc) {
    const steps = charts.stepsOf(doc), progress = doc.progress || {};
    charts.paceChart = charts.paceChart || new Chart(nodes.byId("pace"), "pace", 236, (at) => charts.paceRead(at));
    // Steps overlap: the pace is that of commits, over a few of them.
    const over = Math.max(4, Math.round(steps.length / 60)), points = [];
    for (let n = 1; n < steps.length; n += 1) {
      const from = Math.max(0, n - over), seconds = steps[n][1][5] - steps[from][1][5];
      let tokens = 0;
      for (let k = from + 1; k <= n; k += 1) tokens += steps[k][1][1];
      if (seconds > 0) points.push([steps[n][0] + 1, tokens / seconds]);
    }
    const byStep = new Map(points);
    charts.paceRead = (at) => [`Step ${format.number(at)}`, `${format.number(byStep.get(at))} tokens/s`];
    const now = progress.tokens_per_second;
    // As in the run strip: right after a loss the pace of before stands beside the ideal of now, which says nothing.
    const ideal = progress.ideal_tokens_per_second >= now ? progress.ideal_tokens_per_second : 0;
    const words = points.length ? `${format.number(now)} tokens a second now${ideal ? `; the same peers on ideal links would make about ${format.number(ideal)}` : ""}.` : "Not known before the second step.";
    charts.paceChart.show({ title: "Tokens a second over the steps", words, lines: points.length ? [{ kind: "pace", points }] : [], points: [], marks: Object.values(doc.faults || {}).map((fault) => fault.at_step), level: points.length ? ideal : 0, fromZero: true,
      last: Math.max(1, ...points.map((point) => point[0])), label: (value) => (value ? format.short(value) : "0"), left: 48 });
    nodes.set(nodes.byId("pace-words"), { text: words });
    charts.legend(nodes.byId("pace-legend"), !points.length ? [] : [["pace", "now"], ...(ideal ? [["level", "on ideal links"]] : [])]);
  },
};
