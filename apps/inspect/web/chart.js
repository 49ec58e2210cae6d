// The overview: one column per training step, and one per evaluation.

const SVG = "http://www.w3.org/2000/svg";

function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const mean = numbers => numbers.reduce((a, b) => a + b, 0) / numbers.length;

function drawChart(episodes) {
  const width = get("chart").clientWidth, height = get("chart").clientHeight;
  if (!width) return;
  const left = 26, top = 6, bottom = height - 18, gap = 34;
  const bySource = Map.groupBy ? Map.groupBy(episodes, e => e.source) : group(episodes, e => e.source);
  const steps = SOURCES.filter(source => source.startsWith("step "));
  const evaluations = SOURCES.filter(source => !source.startsWith("step "));
  // Evaluations have names to be read, so their columns are wider, up to 42 % of the chart.
  const between = steps.length && evaluations.length ? gap : 0;
  const room = width - left - between;
  const right = steps.length ? Math.min(room * 0.42, evaluations.length * 64) : room;
  const panels = [
    { sources: steps, start: left, size: room - right, name: source => source.slice(5), title: "step" },
    { sources: evaluations, start: width - right, size: right, name: source => source.slice(11), title: "" },
  ].filter(panel => panel.sources.length);
  const highest = Math.max(1, ...episodes.map(e => e.reward));
  const y = value => bottom - (Math.max(0, value) / highest) * (bottom - top);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(bySource) });
  for (const panel of panels) {
    for (const value of [0, 0.5, 1]) {
      svg.append(s("line", { class: "grid", x1: panel.start, x2: panel.start + panel.size, y1: y(value), y2: y(value) }));
    }
  }
  for (const value of [0, 0.5, 1]) svg.append(s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  for (const panel of panels) drawPanel(svg, panel, bySource, y, top, bottom, height);
  get("chart").replaceChildren(svg);
}

function drawPanel(svg, panel, bySource, y, top, bottom, height) {
  const band = panel.size / panel.sources.length;
  const bar = Math.max(1, band - Math.min(10, band * 0.18));
  const longest = Math.max(...panel.sources.map(source => panel.name(source).length), panel.title.length + 2);
  const labelEvery = Math.ceil((7 * longest) / band);
  const points = [];
  panel.sources.forEach((source, number) => {
    const x = panel.start + number * band;
    const here = bySource.get(source) ?? [];
    const column = s("g", { class: `column${filters.source === source ? " chosen" : ""}` });
    const sums = counted(here, e => e.outcome);
    let floor = bottom;
    for (const outcome of Object.keys(OUTCOMES)) {
      const tall = here.length ? (sums.get(outcome) ?? 0) / here.length * (bottom - top) : 0;
      floor -= tall;
      if (tall) column.append(s("rect", { class: `bar-${outcome}`, x: x + (band - bar) / 2, y: floor, width: bar, height: tall }));
    }
    if (here.length) points.push([x + band / 2, y(mean(here.map(e => e.reward)))]);
    const told = Object.entries(OUTCOMES).filter(([o]) => sums.get(o)).map(([o, name]) => `${sums.get(o)} ${name}`).join(", ");
    const average = here.length ? `mean ${DATA.run.earned} ${mean(here.map(e => e.reward)).toFixed(3)}; ${told}` : "no episode matches";
    column.append(
      s("rect", { class: "hit", x: x + 0.5, y: top - 2, width: Math.max(1, band - 1), height: bottom - top + 4, rx: 3 }),
      s("title", {}, `${source}: ${average}`));
    column.addEventListener("click", () => choose(source));
    svg.append(column);
    if (number % labelEvery === 0) {
      const label = number === 0 && panel.title ? `${panel.title} ${panel.name(source)}` : panel.name(source);
      svg.append(s("text", { x: x + band / 2, y: height - 4, "text-anchor": "middle" }, label));
    }
  });
  if (panel.title) svg.append(s("polyline", { class: "mean", "pointer-events": "none", points: points.join(" ") }));
  if (band > 7) {
    for (const [cx, cy] of points) svg.append(s("circle", { class: "dot", "pointer-events": "none", cx, cy, r: 3.5 }));
  }
}

function group(items, of) {
  const groups = new Map();
  for (const item of items) groups.set(of(item), [...(groups.get(of(item)) ?? []), item]);
  return groups;
}

function inWords(bySource) {
  const told = SOURCES.filter(source => bySource.has(source))
    .map(source => `${source} ${mean(bySource.get(source).map(e => e.reward)).toFixed(2)}`);
  return `Mean ${DATA.run.earned}: ${told.join(", ")}`;
}
