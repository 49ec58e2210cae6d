"use strict";
// State, filters, list and keys. The chart and the reader are in the two scripts that follow this one.

const DATA = JSON.parse(document.getElementById("data").textContent);
const OUTCOMES = { exact: "exact", partial: "partial", wrong: "wrong", format: "bad format" };
const CHUNK = 200; // rows that the list draws at a time

const get = id => document.getElementById(id);
const readable = word => String(word).replaceAll("_", " ");

/** An element with properties (or attributes, where a name has a dash) and children; strings become text nodes. */
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

/** Text as nodes, with the given phrases marked; `found` are answers that a result newly held. */
function marked(text, phrases, found = []) {
  const wanted = [...found, ...phrases].filter(Boolean);
  if (!wanted.length) return [text];
  const any = wanted.map(phrase => phrase.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+")).join("|");
  const answers = new Set(found.map(answer => answer.toLowerCase()));
  return text.split(new RegExp(`(${any})`, "gi")).map((part, i) =>
    i % 2 ? h("mark", { className: answers.has(part.toLowerCase()) ? "found" : "" }, part) : part);
}

const EPISODES = DATA.episodes;
EPISODES.forEach((episode, index) => {
  episode.index = index;
  episode.source = episode.step === null ? `evaluation ${episode.evaluation}` : `step ${episode.step}`;
  episode.key = `${episode.source}/${episode.position}${episode.group === null ? "" : `/${episode.group}`}`;
  episode.asked = `${episode.source}/${episode.group ?? episode.id}`; // one draw of one question
});
const SOURCES = [...new Set(EPISODES.map(episode => episode.source))];

/** All text of an episode in lower case; made when it is first searched. */
function everything(episode) {
  episode.words ??= [episode.question, ...episode.gold, episode.answer ?? "", ...episode.steps.map(s => s.text)]
    .join("\n").toLowerCase();
  return episode.words;
}

const filters = {
  source: "", group: "", text: "", min: "", max: "", corrected: false,
  outcomes: new Set(), kinds: new Set(), stops: new Set(),
};
const among = (chosen, value) => chosen.size === 0 || chosen.has(value);
const TESTS = {
  source: e => !filters.source || e.source === filters.source,
  group: e => !filters.group || e.group === filters.group,
  text: e => !filters.text || everything(e).includes(filters.text.toLowerCase()),
  reward: e => (filters.min === "" || e.reward >= +filters.min) && (filters.max === "" || e.reward <= +filters.max),
  corrected: e => !filters.corrected || e.corrected > 0,
  outcomes: e => among(filters.outcomes, e.outcome),
  kinds: e => among(filters.kinds, e.kind),
  stops: e => among(filters.stops, e.stop),
};

/** The episodes that pass every test except those named: what a filter could still choose from. */
function passing(...except) {
  const tests = Object.entries(TESTS).filter(([name]) => !except.includes(name)).map(([, test]) => test);
  return EPISODES.filter(episode => tests.every(test => test(episode)));
}

const counted = (episodes, of) => episodes.reduce((sums, e) => sums.set(of(e), (sums.get(of(e)) ?? 0) + 1), new Map());

let matches = [];
let current = null;
let place = 0; // of the last episode read among the matches
let drawn = 0;

/** Filters have changed: counts, chart and list follow; the episode stays open if it still fits. */
function refresh() {
  matches = passing();
  drawControls();
  drawChart(passing("source", "group"));
  if (!matches.includes(current)) current = matches[0] ?? null;
  get("count").textContent = matches.length === EPISODES.length
    ? `${EPISODES.length} episodes` : `${matches.length} of ${EPISODES.length} episodes`;
  get("clear").hidden = matches.length === EPISODES.length && !filters.text;
  get("list").replaceChildren();
  drawn = 0;
  drawRows(matches.indexOf(current) + CHUNK);
  show(current);
}

function drawControls() {
  const sources = counted(passing("source", "group"), e => e.source);
  const all = [...sources.values()].reduce((a, b) => a + b, 0);
  const option = (value, label, count) => h("option", { value }, `${label} (${count})`);
  get("source").replaceChildren(option("", "everything", all), ...SOURCES.map(s => option(s, s.replace("evaluation", "eval"), sources.get(s) ?? 0)));
  get("source").value = filters.source;
  const groups = counted(passing("group").filter(e => e.group !== null && filters.source), e => e.group);
  get("group").replaceChildren(
    filters.source ? option("", "all", passing("group").length) : h("option", { value: "" }, "choose a step"),
    ...[...groups].map(([group, count]) => option(group, group, count)));
  get("group").value = filters.group;
  get("group").disabled = groups.size === 0;
  drawChips("outcomes", e => e.outcome, Object.keys(OUTCOMES), o => [h("i", { className: `spot dot-${o}` }), OUTCOMES[o]]);
  drawChips("kinds", e => e.kind, [...new Set(EPISODES.map(e => e.kind))], kind => [readable(kind)]);
  drawChips("stops", e => e.stop, [...new Set(EPISODES.map(e => e.stop))], stop => [readable(stop)]);
  const corrected = passing("corrected").filter(e => e.corrected).length;
  get("corrected").setAttribute("aria-pressed", filters.corrected);
  get("corrected").replaceChildren("corrected query ", h("small", {}, String(corrected)));
  for (const name of ["text", "min", "max"]) if (get(name).value !== filters[name]) get(name).value = filters[name];
}

function drawChips(name, of, values, label) {
  const counts = counted(passing(name), of);
  const focused = [...get(name).children].indexOf(document.activeElement);
  get(name).replaceChildren(...values.map(value => h("button", {
    type: "button", className: `chip${counts.get(value) ? "" : " none"}`, "aria-pressed": filters[name].has(value),
    onclick: () => {
      if (!filters[name].delete(value)) filters[name].add(value);
      refresh();
    },
  }, label(value), h("small", {}, String(counts.get(value) ?? 0)))));
  get(name).children[focused]?.focus();
}

/** Draw rows up to (not including) match number `end`; the rest waits until it is scrolled to. */
function drawRows(end) {
  const list = get("list");
  for (; drawn < Math.min(end, matches.length); drawn++) {
    const episode = matches[drawn];
    if (episode.asked !== matches[drawn - 1]?.asked) {
      list.append(h("div", { className: "asked" },
        h("small", {}, `${episode.group === null ? episode.source : `${episode.source} · group ${episode.group}`} · ${readable(episode.kind)}`),
        ...marked(episode.question, [filters.text])));
    }
    list.append(row(episode));
  }
}

function row(episode) {
  const searches = `${episode.searches} search${episode.searches === 1 ? "" : "es"}`;
  return h("button", {
    type: "button", className: "one", id: `row-${episode.index}`, tabIndex: -1, onclick: () => { show(episode); read(); },
  },
  h("i", { className: `spot dot-${episode.outcome}`, title: OUTCOMES[episode.outcome] }),
  h("span", { className: `said${episode.answer === null ? " nothing" : ""}` }, episode.answer ?? "no answer"),
  h("span", { className: "extra" }, episode.corrected ? `${searches}, corrected` : searches),
  h("span", { className: `earned ink-${episode.outcome}` }, episode.reward.toFixed(2)));
}

/** Show an episode, even one that the filters exclude; the place in the list is then kept. */
function show(episode) {
  document.querySelector(".one[aria-current]")?.removeAttribute("aria-current");
  current = episode;
  if (matches.includes(episode)) {
    place = matches.indexOf(episode);
    drawRows(place + CHUNK);
    const line = get(`row-${episode.index}`);
    line.setAttribute("aria-current", "true");
    if (!narrow.matches) line.scrollIntoView({ block: "nearest" });
  }
  drawReader(episode);
  remember();
}

function move(by) {
  const next = matches[place + by];
  if (next) show(next);
}

function moveQuestion(by) {
  let at = place;
  while (matches[at] && matches[at].asked === matches[place].asked) at += by;
  if (!matches[at]) return;
  while (by < 0 && matches[at - 1]?.asked === matches[at].asked) at -= 1;
  show(matches[at]);
}

function reset() {
  Object.assign(filters, { source: "", group: "", text: "", min: "", max: "", corrected: false });
  for (const name of ["outcomes", "kinds", "stops"]) filters[name].clear();
  refresh();
}

function choose(source) {
  filters.source = filters.source === source ? "" : source;
  filters.group = "";
  refresh();
}

// The address holds what is shown, so that a link to the file can point at an episode.
function remember() {
  const state = new URLSearchParams();
  for (const [name, value] of Object.entries(filters)) {
    const told = value instanceof Set ? [...value].join(",") : value === true ? "1" : value || "";
    if (told) state.set(name, told);
  }
  if (current) state.set("at", current.key);
  history.replaceState(null, "", `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(filters)) {
    const told = state.get(name) ?? "";
    if (value instanceof Set) filters[name] = new Set(told.split(",").filter(Boolean));
    else filters[name] = typeof value === "boolean" ? told === "1" : told;
  }
  current = EPISODES.find(episode => episode.key === state.get("at")) ?? null;
}

// On a narrow screen the episode lies over the list.
const narrow = matchMedia("(max-width: 860px)");
function read() {
  if (!narrow.matches) return;
  document.body.classList.add("reading");
  get("reader").scrollTop = 0;
}
function back() {
  document.body.classList.remove("reading");
  if (current) get(`row-${current.index}`)?.scrollIntoView({ block: "center" });
}

const KEYS = {
  j: () => move(1), k: () => move(-1), J: () => moveQuestion(1), K: () => moveQuestion(-1),
  t: toggleTokens,
  c: () => get("corrected").click(),
  "/": () => get("text").focus(),
  Escape: back,
};

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

function start() {
  const steps = SOURCES.filter(source => source.startsWith("step")).length;
  get("summary").textContent = [
    DATA.run.model, steps && `${steps} training step${steps === 1 ? "" : "s"}`,
    `${SOURCES.length - steps} evaluation${SOURCES.length - steps === 1 ? "" : "s"}`, `${EPISODES.length} episodes`,
  ].filter(Boolean).join(" · ");
  get("notes").textContent = [
    DATA.run.more,
    !DATA.vocabulary || DATA.vocabulary.texts ? "" : "The tokenizer was unavailable, so tokens show as ids.",
    ...DATA.run.problems,
  ].filter(Boolean).join(" ");
  for (const name of ["text", "min", "max"]) {
    get(name).addEventListener("input", () => { filters[name] = get(name).value; refresh(); });
  }
  get("source").addEventListener("change", () => { filters.source = get("source").value; filters.group = ""; refresh(); });
  get("group").addEventListener("change", () => { filters.group = get("group").value; refresh(); });
  get("corrected").addEventListener("click", () => { filters.corrected = !filters.corrected; refresh(); });
  get("clear").addEventListener("click", reset);
  get("filters").querySelector("form").addEventListener("submit", event => event.preventDefault());
  get("filters").open = !narrow.matches;
  const scrolled = narrow.matches ? document : get("list");
  scrolled.addEventListener("scroll", () => {
    const box = narrow.matches ? document.documentElement : get("list");
    if (box.scrollTop + 2 * box.clientHeight > box.scrollHeight) drawRows(drawn + CHUNK);
  }, { passive: true });
  new ResizeObserver(() => drawChart(passing("source", "group"))).observe(get("chart"));
  addEventListener("hashchange", () => { recall(); refresh(); });
  recall();
  refresh();
}
