// Shows one episode.

const AUTHORS = { think: "thinks", search: "searches", open: "opens", answer: "answers", text: "writes outside of any tag" };
const HEAT = [[-0.05, "95 %"], [-0.3, "74 %"], [-0.7, "50 %"], [-1.6, "20 %"], [-3, "5 %"]]; // log-probability, share
let tokensOpen = false;

function drawReader(episode) {
  const reader = get("reader");
  if (!episode) {
    reader.replaceChildren(h("p", { className: "empty" }, "No episode matches these filters."));
    return;
  }
  reader.replaceChildren(
    bar(episode), h("h2", {}, ...marked(episode.question, [filters.text])), answers(episode), verdict(episode),
    h("div", { className: "legend" },
      h("span", { className: "by-model" }, `written by the model${episode.tokens ? " (mask 1)" : ""}`),
      h("span", { className: "by-retriever" }, `given by the retriever${episode.tokens ? " (mask 0: never trained on)" : ""}`)),
    ...episode.steps.map(step), facts(episode), ...(episode.tokens ? [tokens(episode)] : []));
  reader.scrollTop = 0;
}

function bar(episode) {
  const where = episode.group === null ? [episode.source, `no. ${episode.position + 1}`]
    : [episode.source, `group ${episode.group}`, `${episode.position + 1}${episode.rewards ? ` of ${episode.rewards.length}` : ""}`];
  return h("div", { className: "bar" },
    h("button", { type: "button", id: "back", onclick: back }, "‹ list"),
    h("span", {}, [...where, readable(episode.kind), ...(matches.includes(episode) ? [] : ["outside the filters"])].join(" · ")),
    h("nav", {},
      h("button", { type: "button", disabled: place === 0, onclick: () => move(-1), "aria-label": "previous episode" }, "‹"),
      h("button", { type: "button", disabled: place >= matches.length - 1, onclick: () => move(1), "aria-label": "next episode" }, "›")));
}

function answers(episode) {
  return h("dl", { className: "answers" },
    h("dt", {}, "Gold"), h("dd", {}, episode.gold.join(" · ")),
    h("dt", {}, "Answered"), h("dd", { className: `ink-${episode.outcome}` },
      h("strong", {}, ...(episode.answer === null ? ["nothing"] : marked(episode.answer, [filters.text])))));
}

function verdict(episode) {
  const parts = [`EM ${episode.em}`, `F1 ${episode.f1.toFixed(2)}`, episode.fault === null ? "well formed" : "badly formed"];
  return h("section", { className: "verdict", "aria-label": "Reward" },
    h("span", { className: `figure ink-${episode.outcome}` }, episode.reward.toFixed(2)),
    h("div", {},
      h("p", {}, `${capital(episode.why)}.`),
      h("p", { className: "parts" }, parts.join(" · "))),
    h("div", { className: "fate" }, ...(episode.training === null ? elsewhere(episode) : fate(episode))));
}

/** Its advantage, and the rewards of its group: one bar per episode, as tall as the reward. */
function fate(episode) {
  const members = new Map(EPISODES.filter(e => e.asked === episode.asked).map(e => [e.position, e]));
  const highest = Math.max(1, ...episode.rewards);
  return [
    h("span", {}, `Advantage ${episode.training}.`),
    h("div", { className: "siblings", role: "group", "aria-label": "Rewards of the group" }, episode.rewards.map((reward, position) => {
      const member = members.get(position);
      const tall = Math.max(4, Math.max(0, reward) / highest * 100);
      return h("button", {
        type: "button", className: member?.trained ? "" : "idle", disabled: !member, "aria-current": member === episode,
        title: `${position + 1}: reward ${reward.toFixed(2)}${member ? `, ${member.answer ?? "no answer"}` : " (not on this page)"}${member && !member.trained ? ", not trained on" : ""}`,
        "aria-label": `episode ${position + 1}, reward ${reward.toFixed(2)}`, onclick: () => show(member),
      }, s("svg", { viewBox: "0 0 10 100", preserveAspectRatio: "none" },
        s("rect", { class: `bar-${member?.outcome ?? "wrong"}`, x: 0, width: 10, y: 100 - tall, height: tall })));
    })),
    h("small", {}, "The rewards of the group; pale ones were not trained on."),
  ];
}

/** The same question in the other evaluations: how the run learned it. */
function elsewhere(episode) {
  const others = EPISODES.filter(e => e.id === episode.id && e.evaluation !== null);
  return [h("div", { className: "elsewhere" }, "This question in", others.map(other => h("button", {
    type: "button", className: "chip", "aria-pressed": other === episode, onclick: () => show(other),
  }, h("i", { className: `spot dot-${other.outcome}` }), `${other.evaluation} `, h("small", {}, other.reward.toFixed(2)))))];
}

function step(told) {
  const given = told.kind === "result";
  const block = h("section", { className: `step ${told.kind}` },
    h("b", {}, given ? "The retriever gives" : `The model ${AUTHORS[told.kind]}`),
    h("div", { className: "body" }, ...marked(told.text, [filters.text], told.found)));
  if (given && told.found) {
    const found = told.found.length
      ? `✓ holds ${told.found.join(", ")}${told.corrects ? ": this query corrected the one before" : ""}`
      : "✗ holds no new answer";
    block.append(h("p", { className: told.found.length ? "helped" : "useless" }, found));
    if (told.unseen) block.append(h("p", { className: "useless" }, "The model never saw this result, because the context was full."));
  }
  return block;
}

const capital = text => text.charAt(0).toUpperCase() + text.slice(1);

function facts(episode) {
  return h("div", { className: "facts" }, [
    `ended: ${readable(episode.stop)}`,
    `${episode.searches} search${episode.searches === 1 ? "" : "es"}`,
    episode.corrected ? `${episode.corrected} corrected quer${episode.corrected === 1 ? "y" : "ies"}` : null,
    `${episode.written} tokens written, ${episode.read} read`,
    `weight version ${episode.versions.join(", ") || "unknown"}`,
    episode.branch,
    `${episode.seconds[0]} s generating, ${episode.seconds[1]} s searching`,
    episode.id,
  ].filter(Boolean).map(fact => h("span", {}, fact)));
}

function tokens(episode) {
  const summary = h("summary", { onclick: event => { event.preventDefault(); toggleTokens(); } }, "Token by token");
  const details = h("details", { id: "tokens", open: tokensOpen }, summary);
  if (tokensOpen) details.append(...stream(episode));
  return details;
}

/** Open or close the tokens, for this episode and those read after it. */
function toggleTokens() {
  if (!current?.tokens) return;
  tokensOpen = !tokensOpen;
  get("tokens").replaceWith(tokens(current));
}

function stream(episode) {
  const { ids, logprobs, spans } = episode.tokens;
  const { ids: numbers, texts } = DATA.vocabulary;
  const box = h("div", { className: "stream", tabIndex: 0, role: "application", "aria-label": "Tokens; arrow keys move" });
  const told = [];
  let at = 0, sampled = 0, former = "";
  for (const [length, version] of spans) {
    if (version && version !== former) {
      box.append(h("sup", { title: `from here weight version ${version}` }, `v${version}`));
      former = version;
    }
    for (const end = at + length; at < end; at++) {
      const text = texts ? texts[ids[at]] : `#${numbers[ids[at]]} `;
      const raw = version ? logprobs[sampled++] : null;
      const logprob = raw === null ? null : raw / DATA.run.logprob_scale;
      box.append(h("i", { className: version ? `heat${heat(logprob)}` : "given" }, visible(text)));
      told.push(sentence(at, numbers[ids[at]], texts ? text : null, version, logprob));
    }
  }
  const readout = h("div", { id: "readout", "aria-live": "polite" }, "Point at a token, or move with the arrow keys.");
  const cells = [...box.querySelectorAll("i")];
  let chosen = -1;
  const point = index => {
    if (!cells[index]) return;
    cells[chosen]?.classList.remove("at");
    chosen = index;
    cells[index].classList.add("at");
    readout.textContent = told[index];
  };
  for (const kind of ["pointerover", "click"]) box.addEventListener(kind, event => point(cells.indexOf(event.target)));
  box.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { event.preventDefault(); point(chosen + by); }
  });
  const scale = h("div", { className: "scale" }, "probability when sampled:",
    HEAT.map(([, share], level) => h("span", { className: `heat${level}` }, `≥ ${share}`)),
    h("span", { className: `heat${HEAT.length}` }, "less"));
  return [scale, box, readout];
}

const heat = logprob => {
  const level = HEAT.findIndex(([least]) => logprob >= least);
  return level < 0 ? HEAT.length : level;
};

/** White space and incomplete characters as visible ones that can be pointed at. */
const visible = text => (text || "∅").replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t").replaceAll("\ufffd", "▯");

function sentence(at, number, text, version, logprob) {
  const token = `token ${at}: ${text === null ? "" : `${JSON.stringify(text)} `}(id ${number})`;
  if (!version) return `${token} · given by the retriever · mask 0`;
  const told = logprob === null ? "not finite" : `${logprob.toFixed(4)} (${(100 * Math.exp(logprob)).toFixed(1)} %)`;
  return `${token} · written by the model · mask 1 · log-probability ${told} · weight version ${version}`;
}

start();
