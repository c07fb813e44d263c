// The page: a list of runs, one run, and what keeps them fresh. All text goes in as text, never as HTML.

import { Chart, append, columnOf, look } from "./charts.js";
import * as words from "./words.js";

const POINTS = 1000;
const SILENCE_MS = 8000;
const POLL_MS = 3000;
const AXES = ["step", "hours", "time"];
const AXIS_WORDS = { step: "steps", hours: "hours trained", time: "clock" };
const GOODPUT = [
  ["productive", "productive", "--green"], ["recomputed", "recomputed", "--orange"],
  ["checkpointing", "checkpointing", "--blue"], ["evaluating", "evaluating", "--sky"],
  ["starting", "starting", "--yellow"], ["paused", "paused", "--pink"], ["hung", "hung", "--bad"], ["down", "down", "--soft"],
];

const main = document.getElementById("main");
const where = document.getElementById("where");
const link = document.getElementById("link");
const trouble = document.getElementById("trouble");

let view = null;

// ---- small parts

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function state(run) {
  const { sign, kind, word } = words.stateOf(run.health);
  return el("span", { class: `state ${kind}`, title: run.health_reason }, `${sign} ${word}`);
}

function facts(entries) {
  return el("dl", { class: "facts" }, entries.filter(Boolean).map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function bar(share) {
  const width = Math.max(0, Math.min(100, share));
  return el("div", { class: "bar", role: "progressbar", "aria-valuenow": width.toFixed(1), "aria-valuemin": 0, "aria-valuemax": 100 },
    svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none" },
      svg("rect", { width, height: 1, fill: css("--blue") })));
}

function table(heads, rows, kind = "") {
  return el("div", { class: "wide" }, el("table", { class: kind },
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", class: head.kind }, head.name)))),
    el("tbody", {}, rows)));
}

const cell = (value, head = {}) => el("td", { class: head.kind, "data-name": head.name }, value ?? "");

function say(message) {
  trouble.hidden = !message;
  trouble.textContent = message ?? "";
}

async function load(address) {
  const started = performance.now();
  let response;
  try {
    response = await fetch(address, { headers: { accept: "application/json" } });
  } catch {
    throw new Error("The server does not respond. Retrying.");
  }
  if (response.status === 401) throw new Error("The token is no longer valid. Open the address that the server printed.");
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error ?? `The server returned ${response.status}.`);
  performance.measure(`load ${address.split("?")[0]}`, { start: started });
  return content;
}

const query = (parts) => new URLSearchParams(Object.entries(parts).filter(([, value]) => value != null)).toString();

// Put new children into a section only if what it shows has changed, so that a selection in it survives.
function refill(section, shown, make) {
  const text = JSON.stringify(shown);
  if (section.dataset.shown === text) return;
  section.dataset.shown = text;
  section.replaceChildren(...[make()].flat().filter(Boolean));
}

// ---- all runs

class AllRuns {
  constructor() {
    this.selected = null;
    this.body = el("section", { "aria-label": "Runs" }, el("p", { class: "soft" }, "Loading runs…"));
    main.replaceChildren(this.body);
    where.textContent = "";
    document.title = "crashproof";
    this.look();
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
  }

  async look() {
    try {
      const answer = await load("api/runs");
      if (this.isClosed) return;
      say(null);
      link.textContent = "";
      where.textContent = answer.root;
      this.show(answer);
    } catch (error) {
      if (!this.isClosed) say(error.message);
    }
    if (!this.isClosed) this.timer = setTimeout(() => this.look(), POLL_MS);
  }

  show({ runs, now, root, num_skipped, skipped }) {
    runs.sort((one, other) => (other.last_update_time ?? 0) - (one.last_update_time ?? 0));
    this.runs = runs;
    const heads = [
      { name: "Run" }, { name: "State" }, { name: "Step", kind: "number" }, { name: "Progress", kind: "number" },
      { name: "Loss", kind: "number" }, { name: "Remaining", kind: "number" }, { name: "Cost", kind: "number" },
      { name: "Last update", kind: "number" },
    ];
    if (!runs.length) {
      this.body.replaceChildren(el("h2", {}, "No runs yet"),
        el("p", {}, "There is no run under ", el("code", {}, root), ". A run appears here as soon as it starts."), skippedNote(num_skipped, skipped));
      return;
    }
    this.body.replaceChildren(el("h2", {}, `${words.count(runs.length)} ${runs.length === 1 ? "run" : "runs"}`),
      table(heads, runs.map((run) => this.row(run, heads, now)), "runs"), skippedNote(num_skipped, skipped));
  }

  row(run, heads, now) {
    const isHere = run.name === this.selected;
    const name = el("a", { href: addressOf(run.name) }, run.name);
    if (run.health === "unreadable") {
      return el("tr", { class: isHere ? "here" : null }, el("td", { class: "text" }, name), el("td", {}, state(run)),
        el("td", { colspan: 6, class: "text" }, run.health_reason));
    }
    const values = [
      name, state(run), words.count(run.steps_completed), `${run.progress_pct.toFixed(1)} %`,
      run.loss == null ? "" : words.number(run.loss),
      run.health === "complete" ? "" : words.hoursLong(run.estimated_remaining_hours),
      run.api_cost ? words.dollars(run.api_cost) : "", words.ago(run.last_update_time, now),
    ];
    return el("tr", { class: isHere ? "here" : null }, values.map((value, at) => cell(value, heads[at])));
  }

  key(pressed) {
    if (!this.runs?.length) return false;
    const at = this.runs.findIndex((run) => run.name === this.selected);
    if (pressed === "j" || pressed === "k") {
      const next = Math.max(0, Math.min(this.runs.length - 1, at + (pressed === "j" ? 1 : -1)));
      this.selected = this.runs[next].name;
      for (const [index, row] of [...this.body.querySelectorAll("tbody tr")].entries()) {
        row.classList.toggle("here", index === next);
        if (index === next) { row.scrollIntoView({ block: "nearest" }); row.querySelector("a").focus(); }
      }
      return true;
    }
    return false;
  }
}

function skippedNote(many, first) {
  if (!many) return "";
  const names = first.map((each) => el("li", {}, el("code", {}, each.name), `: ${each.reason}`));
  const rest = many > first.length ? el("li", {}, `and ${words.count(many - first.length)} more`) : "";
  // The list is made anew every few seconds: what was opened stays open.
  return el("details", { class: "card", id: "skipped", open: document.getElementById("skipped")?.open ?? false }, el("summary", {}, `${words.count(many)} ${many === 1 ? "folder was" : "folders were"} not searched`),
    el("ul", {}, names, rest), el("p", { class: "note" }, "Links that lead out are followed by ", el("code", {}, "crashproof serve --follow-links"), "."));
}

const addressOf = (name) => `#/run/${encodeURIComponent(name)}`;

// ---- one run

class OneRun {
  constructor(name) {
    this.name = name;
    this.charts = [];
    this.axis = "step";
    this.isLog = false;
    this.weight = 0.9;
    this.zoom = null;
    this.curve = null;
    this.detail = null;
    this.compared = null;
    where.textContent = name;
    document.title = `${name} · crashproof`;
    this.build();
    this.begin();
  }

  build() {
    const part = (id, label) => (this[id] = el("section", { id, "aria-label": label }));
    this.scaleButton = el("button", { type: "button", "aria-pressed": "false", title: "l", onclick: () => this.setLog(!this.isLog) }, "Logarithmic");
    this.axisButton = el("button", { type: "button", title: "x", onclick: () => this.nextAxis() });
    this.resetButton = el("button", { type: "button", title: "0", disabled: true, onclick: () => this.zoomTo(null) }, "Full history");
    this.smooth = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: this.weight, "aria-label": "Smoothing",
      oninput: () => this.setWeight(Number(this.smooth.value)) });
    this.smoothText = el("output", {}, this.weight.toFixed(2));
    this.notes = el("p", { class: "note of-training", id: "decimation", role: "status" });
    this.holders = el("div", { id: "charts", class: "of-training" });
    main.replaceChildren(part("head", "State"), part("alarms", "Alerts"),
      el("div", { class: "tools of-training" }, this.scaleButton, this.axisButton, el("label", {}, "Smoothing ", this.smooth, this.smoothText), this.resetButton),
      this.notes, this.holders,
      el("div", { class: "two of-training" }, part("learning", "Learning"), part("time", "Where the time went")),
      el("div", { class: "two" }, part("teacher", "Teacher")),
      this.fold("alerts", "Alerts", true), this.fold("attempts", "Attempts", true), this.fold("checkpoints", "Checkpoints", true, "of-training"),
      this.fold("events", "Events"), this.fold("config", "Config"));
    this.sayAxis();
  }

  fold(id, title, isOpen = false, kind = "") {
    this[id] = el("div", { id });
    return el("details", { class: `card ${kind}`, open: isOpen }, el("summary", {}, title), this[id]);
  }

  close() {
    this.isClosed = true;
    this.source?.close();
    clearTimeout(this.watchdog);
    clearTimeout(this.poll);
    clearTimeout(this.reading);
    this.dropCharts();
  }

  dropCharts() {
    for (const chart of this.charts) chart.close();
    this.charts = [];
  }

  async begin() {
    try {
      const [detail] = await Promise.all([load(`api/run?${query({ name: this.name })}`), this.loadCurve()]);
      if (this.isClosed) return;
      say(null);
      this.take(detail);
      this.listen();
      performance.mark("drawn");
      main.dataset.ready = "yes";
    } catch (error) {
      if (this.isClosed) return;
      say(error.message);
      this.poll = setTimeout(() => this.begin(), POLL_MS);
    }
  }

  async loadCurve() {
    const curve = await load(`api/curve?${query({ name: this.name, points: POINTS })}`);
    if (this.isClosed) return;
    this.curve = curve;
    clearTimeout(this.reading);
    if (!curve.is_complete) this.reading = setTimeout(() => this.loadCurve().catch((error) => say(error.message)), 1000);
    if (this.zoom) await this.loadZoom(); else this.draw();
  }

  async loadZoom() {
    const { from, to } = this.zoom;
    const curve = await load(`api/curve?${query({ name: this.name, points: POINTS, from, to })}`);
    if (this.isClosed || this.zoom?.from !== from || this.zoom?.to !== to) return;
    this.zoom.curve = curve;
    this.draw();
  }

  // -- live updates

  listen() {
    this.source?.close();
    const after = this.curve.end;
    this.source = new EventSource(`api/live?${query({ name: this.name, after })}`);
    this.source.addEventListener("tail", (event) => { this.received("live"); this.takeTail(JSON.parse(event.data)); });
    this.source.addEventListener("detail", (event) => { this.received("live"); this.take(JSON.parse(event.data)); });
    this.source.addEventListener("summary", (event) => { this.received("live"); this.take({ ...this.detail, ...JSON.parse(event.data) }); });
    this.source.addEventListener("trouble", (event) => { this.received("live"); say(JSON.parse(event.data).error); });
    this.source.addEventListener("error", () => { link.textContent = "reconnecting…"; });
    this.wait();
  }

  received(how) {
    link.textContent = how;
    say(null);
    this.wait();
  }

  wait() {
    clearTimeout(this.watchdog);
    // Some proxies buffer a stream until it ends: then poll.
    this.watchdog = setTimeout(() => { this.source.close(); this.pollNow(); }, SILENCE_MS);
  }

  async pollNow() {
    if (this.isClosed) return;
    try {
      const [tail, detail] = await Promise.all([
        load(`api/tail?${query({ name: this.name, after: this.curve.end })}`),
        load(`api/run?${query({ name: this.name })}`),
      ]);
      if (this.isClosed) return;
      say(null);
      link.textContent = "polling";
      this.takeTail(tail);
      this.take(detail);
    } catch (error) {
      if (this.isClosed) return;
      link.textContent = "";
      say(error.message);
    }
    this.poll = setTimeout(() => this.pollNow(), POLL_MS);
  }

  takeTail(tail) {
    const newest = this.curve.step.at(-1) ?? -1;
    if (tail.is_stale || (tail.step.length && tail.step[0] <= newest)) {
      // Steps were recomputed, or the page is far behind.
      this.loadCurve().then(() => this.source?.readyState !== EventSource.CLOSED && this.listen()).catch((error) => say(error.message));
      return;
    }
    if (!tail.step.length || !this.curve.is_complete) return;
    append(this.curve, tail);
    this.curve.is_decimated ||= tail.num_updates > tail.step.length;
    if (this.curve.step.length > 2.5 * POINTS) this.loadCurve().catch((error) => say(error.message));
    else if (!this.zoom) this.draw();
  }

  // -- curves

  get shown() {
    return this.zoom?.curve ?? this.curve;
  }

  draw() {
    const curve = this.shown;
    const components = Object.keys(curve.series).filter((key) => key.startsWith("loss_components."));
    const others = Object.keys({ ...words.TITLES, ...curve.series }).filter((key) => curve.series[key] && !components.includes(key) && !["loss", "learning_rate"].includes(key));
    const wanted = [
      { id: "loss", title: words.titleOf("loss"), keys: ["loss"], height: 300, isLog: this.isLog },
      components.length && { id: "components", title: "Loss components", keys: components, height: 200, isLog: this.isLog },
      { id: "rate", title: words.titleOf("learning_rate"), keys: ["learning_rate"], height: 130 },
      ...others.map((key) => ({ id: key, title: words.titleOf(key), keys: [key], height: 130 })),
    ].filter(Boolean);
    const shape = JSON.stringify([wanted, this.axis, document.documentElement.dataset.theme]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.makeCharts(wanted);
    }
    for (const chart of this.charts) chart.show(curve, chart.keys[0] === "learning_rate" ? 0 : this.weight);
    this.sayDecimation(curve);
    this.resetButton.disabled = !this.zoom;
  }

  makeCharts(wanted) {
    this.dropCharts();
    this.holders.replaceChildren();
    for (const { id, title, keys, height, isLog } of wanted) {
      const holder = el("div", { class: "chart", id: `chart-${id}` });
      const names = el("ul", { class: "keys" });
      this.holders.append(el("section", { class: "card", "aria-label": title }, el("h3", {}, title), holder, names));
      const chart = new Chart(holder, {
        keys, axis: this.axis, isLog: isLog ?? false, height, sync: "run", label: title,
        marks: () => this.marks(), onZoom: (from, to) => this.zoomOn(from, to), onReset: () => this.zoomTo(null),
      });
      this.charts.push(chart);
      if (keys.length > 1) names.append(...keys.map((key, index) => this.nameOf(chart, key, index)));
      if (id === "loss") names.append(...this.legend());
    }
  }

  nameOf(chart, key, index) {
    const { color, dash } = look(index);
    const line = svg("svg", { viewBox: "0 0 36 8" }, svg("path", { d: "M0 4h36", stroke: color, "stroke-width": 3, "stroke-dasharray": dash.join(" ") }));
    const button = el("button", { type: "button", "aria-pressed": "true", onclick: () => {
      chart.toggle(key);
      button.setAttribute("aria-pressed", String(!chart.hidden.has(key)));
    } }, line, key.replace("loss_components.", ""));
    return el("li", {}, button);
  }

  legend() {
    const sign = (...shapes) => svg("svg", { viewBox: "0 0 36 12" }, ...shapes);
    const shade = sign(svg("rect", { width: 36, height: 12, fill: css("--shade") }), svg("path", { d: "M4 0l12 12M16 0l12 12M28 0l8 8", stroke: css("--hatch") }));
    const band = sign(svg("rect", { y: 2, width: 36, height: 8, fill: css("--blue"), opacity: 0.28 }), svg("path", { d: "M0 6h36", stroke: css("--blue"), "stroke-width": 2 }));
    const diamond = sign(svg("path", { d: "M18 0l6 6-6 6-6-6z", fill: css("--soft") }));
    const triangle = sign(svg("path", { d: "M11 1h14l-7 10z", fill: css("--bad") }));
    const border = sign(svg("path", { d: "M18 0v12", stroke: css("--soft"), "stroke-dasharray": "3 3" }));
    return [[band, "lowest to highest, mean"], [diamond, "checkpoint"], [border, "attempt begins"], [shade, "recomputed"], [triangle, "non-finite"]]
      .map(([picture, text]) => el("li", {}, picture, text));
  }

  marks() {
    const attempts = (this.detail?.attempts ?? []).filter((each) => each.first_step != null);
    return {
      recomputed: this.curve?.recomputed ?? [],
      attempts: attempts.length > 1 ? attempts.map((each) => ({ step: each.first_step, attempt: each.attempt })) : [],
      checkpoints: (this.detail?.checkpoints ?? []).filter((each) => each.state !== "quarantined")
        .map((each) => ({ step: each.step, isVerifiable: each.state === "recorded" })),
    };
  }

  sayDecimation(curve) {
    const parts = [];
    if (!curve.is_complete) parts.push(`Reading the journal: ${Math.floor((100 * curve.end) / Math.max(1, curve.num_bytes))} % read; newer steps follow.`);
    if (!curve.step.length) parts.push("No updates yet.");
    else if (curve.is_decimated) {
      const many = Math.ceil(curve.num_updates / curve.step.length);
      parts.push(`${words.count(curve.num_updates)} updates in ${words.count(curve.step.length)} points: each shows the lowest, highest and mean of about ${words.count(many)} updates. Drag over a chart to zoom in.`);
    } else parts.push(`${words.count(curve.num_updates)} updates, all shown.`);
    const bad = curve.series.loss?.non_finite.reduce((sum, [, many]) => sum + many, 0);
    if (bad) parts.push(`${words.count(bad)} non-finite ${bad === 1 ? "loss" : "losses"} (▼).`);
    this.notes.textContent = parts.join(" ");
  }

  // -- zoom, axis, scale

  stepAt(place) {
    const xs = this.shown[this.axis];
    if (this.axis === "step") return Math.round(place);
    let low = 0;
    let high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < place) low = middle + 1; else high = middle;
    }
    return this.shown.step[low];
  }

  zoomOn(from, to) {
    this.zoomTo({ from: Math.max(0, this.stepAt(from)), to: Math.max(0, this.stepAt(to)) });
  }

  zoomTo(range) {
    if (range && range.to <= range.from) range.to = range.from + 1;
    this.zoom = range;
    if (range) this.loadZoom().catch((error) => say(error.message));
    else this.draw();
  }

  move(shift, stretch) {
    const all = this.curve;
    if (!all?.step.length) return;
    const first = all.first_step[0];
    const last = all.step.at(-1);
    const { from, to } = this.zoom ?? { from: first, to: last };
    const width = Math.max(2, (to - from) * stretch);
    const middle = (from + to) / 2 + shift * (to - from);
    if (width >= last - first) { this.zoomTo(null); return; }
    const start = Math.round(Math.min(Math.max(first, middle - width / 2), last - width));
    this.zoomTo({ from: start, to: Math.round(start + width) });
  }

  setLog(isLog) {
    this.isLog = isLog;
    this.scaleButton.setAttribute("aria-pressed", String(isLog));
    this.draw();
  }

  setWeight(weight) {
    this.weight = Math.max(0, Math.min(0.99, Math.round(weight * 100) / 100));
    this.smooth.value = this.weight;
    this.smoothText.textContent = this.weight.toFixed(2);
    this.draw();
  }

  nextAxis() {
    this.axis = AXES[(AXES.indexOf(this.axis) + 1) % AXES.length];
    this.sayAxis();
    if (this.curve) this.draw();
  }

  sayAxis() {
    this.axisButton.textContent = `Axis: ${AXIS_WORDS[this.axis]}`;
  }

  key(pressed) {
    const doing = {
      l: () => this.setLog(!this.isLog), x: () => this.nextAxis(), s: () => this.setWeight(this.weight + 0.05),
      S: () => this.setWeight(this.weight - 0.05), 0: () => this.zoomTo(null), "+": () => this.move(0, 0.5),
      "=": () => this.move(0, 0.5), "-": () => this.move(0, 2), "−": () => this.move(0, 2),
      ArrowLeft: () => this.move(-0.25, 1), ArrowRight: () => this.move(0.25, 1), u: () => { location.hash = "#/"; },
    }[pressed];
    if (!doing || (!this.curve && pressed !== "u")) return false;
    doing();
    return true;
  }

  // -- everything beside the curves

  take(detail) {
    const isFirst = !this.detail;
    const marked = JSON.stringify(this.marks());
    this.detail = detail;
    const { summary, now } = detail;
    main.dataset.kind = summary.is_job ? "job" : "training";
    this.showHead(summary, now);
    this.showAlarms(summary, detail.events);
    this.showLearning(summary);
    this.showTime(summary.goodput_seconds);
    this.showTeacher(summary);
    refill(this.attempts, detail.attempts, () => attemptTable(detail.attempts));
    refill(this.checkpoints, detail.checkpoints, () => checkpointTable(detail.checkpoints));
    refill(this.events, detail.events, () => eventTable(detail.events));
    if (isFirst || this.configHash !== detail.config_hash) {
      this.configHash = detail.config_hash;
      this.showConfig(detail);
    }
    if (this.curve && marked !== JSON.stringify(this.marks())) for (const chart of this.charts) chart.plot.redraw(false);
  }

  showHead(summary, now) {
    const finish = summary.status === "running" && summary.estimated_finish_time != null ? words.moment(summary.estimated_finish_time) : null;
    this.head.replaceChildren(
      el("h2", {}, this.name, " ", state(summary)),
      summary.health_reason ? el("p", { class: "soft" }, summary.health_reason) : "",
      bar(summary.progress_pct),
      facts([
        [summary.is_job ? "Requests completed" : "Step", `${words.count(summary.steps_completed)} of ${words.count(summary.total_steps_target)} (${summary.progress_pct.toFixed(1)} %)`],
        summary.status === "completed" ? null : ["Remaining", words.remaining(summary)],
        finish && ["Estimated finish", finish],
        [summary.is_job ? "Time spent" : "Training time", words.hoursLong(summary.elapsed_wall_clock_hours)],
        ["Last update", words.ago(summary.last_update_time, now)],
        ["Attempt", summary.attempt_host ? `${summary.attempt} on ${summary.attempt_host}, process ${summary.attempt_pid}` : String(summary.attempt)],
        !summary.is_job && ["Newest checkpoint", words.newestCheckpoint(summary)],
        !summary.is_job && ["Throughput", throughput(summary)],
        summary.rank_times && ["Slowest rank", slowestRank(summary.rank_times)],
        ...supervision(summary.supervision),
      ]));
  }

  // The top shows the current alerts; past ones are in a table of their own.
  showAlarms(summary, events) {
    const current = summary.status === "running" ? summary.alerts_active.map((kind) => kind.replaceAll("_", " ")) : [];
    if (summary.replay_differed_at != null) current.push(`step ${words.count(summary.replay_differed_at)} had a different loss when it was recomputed`);
    if (summary.damage_found) current.push(`${words.count(summary.damage_found)} damaged journal records were quarantined`);
    this.alarms.replaceChildren(...(current.length ? [el("div", { class: "card alarm" }, el("h3", {}, "Alerts"), el("ul", {}, current.map((each) => el("li", {}, each))))] : []));
    const raised = events.filter((event) => event.event === "alert_raised").reverse();
    refill(this.alerts, raised, () => (raised.length
      ? table([{ name: "When" }, { name: "Kind" }, { name: "Message" }], raised.map((event) =>
        el("tr", {}, cell(words.moment(event.timestamp)), cell(event.kind.replaceAll("_", " ")), cell(event.message, { kind: "text" }))))
      : el("p", {}, "None.")));
  }

  showLearning(summary) {
    const trend = summary.loss_trend;
    this.learning.replaceChildren(el("div", { class: "card" }, el("h3", {}, "Learning"), el("p", { id: "verdict" }, words.verdict(trend.verdict)),
      facts([
        ["Loss", trend.has_data ? words.number(trend.current_loss) : "none yet"],
        ["Moving average", trend.moving_avg_loss == null ? "unknown" : words.number(trend.moving_avg_loss)],
        ["Slope per update (95 %)", trend.slope_per_update == null ? "unknown" : `${words.number(trend.slope_per_update, 3)} (${words.number(trend.slope_low, 3)} to ${words.number(trend.slope_high, 3)})`],
        ["Learning rate", summary.learning_rate == null ? "unknown" : words.number(summary.learning_rate)],
        ...Object.entries(summary.evaluation).map(([name, value]) => [`${name} (step ${words.count(summary.evaluation_step)})`, words.number(value)]),
      ])));
  }

  showTime(goodput) {
    const total = GOODPUT.reduce((sum, [name]) => sum + goodput[name], 0);
    const picture = svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none" });
    let at = 0;
    for (const [name, , color] of GOODPUT) {
      const width = total ? (100 * goodput[name]) / total : 0;
      picture.append(svg("rect", { x: at, width, height: 1, fill: css(color) }));
      at += width;
    }
    const shares = GOODPUT.filter(([name]) => goodput[name] > 0).map(([name, text, color]) =>
      el("li", {}, svg("svg", { viewBox: "0 0 36 12" }, svg("rect", { width: 36, height: 12, fill: css(color) })),
        `${text} ${words.duration(goodput[name])} (${((100 * goodput[name]) / total).toFixed(1)} %)`));
    this.time.replaceChildren(el("div", { class: "card" }, el("h3", {}, "Where the time went"),
      el("p", { id: "goodput" }, total ? `${(100 * goodput.goodput_fraction).toFixed(1)} % of the wall time was productive.` : "Nothing yet."),
      el("div", { class: "bar", role: "img", "aria-label": shares.map((each) => each.textContent).join(", ") }, picture),
      el("ul", { class: "keys" }, shares)));
  }

  showTeacher(summary) {
    const hasRequests = summary.api_responses_saved || summary.api_requests_in_doubt || summary.connection_failures || summary.api_responses_recovered;
    this.teacher.replaceChildren(...(hasRequests
      ? [el("div", { class: "card" }, el("h3", {}, "Teacher"), facts([
        ["Paid answers", `${words.count(summary.api_responses_saved)} for ${words.dollars(summary.api_cost)}`],
        ["Reused", `${words.count(summary.api_responses_recovered)}, ${words.dollars(summary.api_cost_saved)} saved`],
        summary.api_requests_in_doubt && ["Outcome unknown", `${words.count(summary.api_requests_in_doubt)} requests, at most ${words.dollars(summary.api_cost_in_doubt)}`],
        summary.api_responses_bad && ["Unusable answers", `${words.count(summary.api_responses_bad)}, ${words.dollars(summary.api_cost_wasted)} wasted`],
        summary.api_cost_before && ["Cost of earlier sessions", words.dollars(summary.api_cost_before)],
        ["Failed requests", `${words.count(summary.connection_failures)}, ${words.count(summary.connection_retries)} retries`],
      ]))]
      : []));
  }

  showConfig(detail) {
    const entries = Object.entries(detail.config);
    const chosen = el("select", { "aria-label": "Compare with", onchange: () => this.compare(chosen.value) }, el("option", { value: "" }, "Compare with…"));
    const differences = el("div", { id: "differences" });
    this.differences = differences;
    load("api/runs").then(({ runs }) => chosen.append(...runs.filter((run) => run.name !== this.name).map((run) => el("option", { value: run.name }, run.name)))).catch((error) => say(error.message));
    this.config.replaceChildren(
      el("p", {}, chosen), differences,
      table([{ name: "Key" }, { name: "Value" }], entries.map(([key, value]) => el("tr", {}, cell(key, { kind: "mono" }), cell(value, { kind: "text mono" })))),
      el("p", { class: "note mono" }, `SHA-256 ${detail.config_hash}`, el("br"), detail.folder));
  }

  async compare(other) {
    if (!other) { this.differences.replaceChildren(); return; }
    try {
      const answer = await load(`api/compare?${query({ name: this.name, other })}`);
      const rows = answer.differences.map((each) => el("tr", {}, cell(each.key, { kind: "mono" }),
        cell(each.this ?? "(absent)", { kind: "text mono" }), cell(each.other ?? "(absent)", { kind: "text mono" })));
      this.differences.replaceChildren(rows.length ? table([{ name: "Key" }, { name: this.name }, { name: other }], rows) : el("p", {}, "The configs are identical."));
    } catch (error) {
      say(error.message);
    }
  }
}

function throughput(summary) {
  const parts = [];
  if (summary.throughput_samples_per_sec != null) parts.push(`${words.rate(summary.throughput_samples_per_sec)} samples/s`);
  if (summary.throughput_tokens_per_sec != null) parts.push(`${words.rate(summary.throughput_tokens_per_sec)} tokens/s`);
  return parts.join(", ") || "unknown";
}

// What `crashproof run` has recorded; nothing where no process ended badly.
function supervision({ restarts, ends, lost_seconds, newest }) {
  const causes = Object.entries(ends).filter(([cause]) => cause !== "completed");
  if (!causes.length) return [];
  const found = causes.map(([cause, count]) => `${words.count(count)} ${cause.replaceAll("_", " ")}`).join(", ");
  const last = newest && newest.cause !== "completed" && `${newest.cause.replaceAll("_", " ")}: ${newest.details}; ${newest.reason}`;
  return [["Restarts", `${words.count(restarts)} (${found}), ${words.duration(lost_seconds)} of training lost`], last && ["Newest end", last]];
}

function slowestRank(times) {
  const [slowest] = times.slowest;
  if (!slowest || !times.median_seconds) return "too fast to be measured";
  return `${slowest.rank} on ${slowest.host}, ${(slowest.seconds / times.median_seconds).toFixed(1)} times the median of ${words.count(times.num_ranks)} ranks`;
}

function attemptTable(attempts) {
  const heads = [{ name: "#", kind: "number" }, { name: "Started" }, { name: "Steps" }, { name: "End" }, { name: "Process" }, { name: "Commit" }];
  return table(heads, [...attempts].reverse().map((each) => el("tr", {},
    cell(String(each.attempt), heads[0]), cell(words.moment(each.start)),
    cell(each.first_step == null ? "none" : `${words.count(each.first_step)} to ${words.count(each.last_step)}`),
    cell(each.error ? `${each.how}: ${each.error}` : each.how, { kind: "text" }),
    cell(`${each.host} ${each.pid}`), cell((each.git_commit ?? "").slice(0, 10), { kind: "mono" }))));
}

function checkpointTable(checkpoints) {
  if (!checkpoints.length) return el("p", {}, "None recorded.");
  const heads = [{ name: "Step", kind: "number" }, { name: "Path" }, { name: "State" }, { name: "Loss", kind: "number" }, { name: "Size", kind: "number" }, { name: "Tags" }, { name: "Saved" }];
  return [table(heads, [...checkpoints].reverse().map((each) => el("tr", {},
    cell(words.count(each.step), heads[0]), cell(each.path, { kind: "text mono" }),
    cell(words.checkpointState(each), { kind: "text" }),
    cell(each.loss == null ? "" : words.number(each.loss), heads[3]), cell(each.num_bytes == null ? "" : words.bytes(each.num_bytes), heads[4]),
    cell((each.tags ?? []).join(", ")), cell(each.created_at ? words.moment(each.created_at) : "")))),
    el("p", { class: "note" }, "The checksum of a checkpoint is recorded when it is saved. ", el("code", {}, "crashproof verify DIR"), " reads every byte and compares it.")];
}

function eventTable(events) {
  const heads = [{ name: "When" }, { name: "Attempt", kind: "number" }, { name: "Event" }, { name: "Details" }];
  return table(heads, [...events].reverse().map(({ timestamp, attempt, event, ...more }) => el("tr", {},
    cell(words.moment(timestamp)), cell(String(attempt), heads[1]), cell(event.replaceAll("_", " ")),
    cell(Object.entries(more).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", "), { kind: "text mono" }))));
}

// ---- page

function route() {
  view?.close();
  say(null);
  link.textContent = "";
  delete main.dataset.ready;
  delete main.dataset.kind;
  const [, kind, name] = /^#\/(run)\/(.+)$/.exec(location.hash) ?? [];
  let run = null;
  try { run = kind ? decodeURIComponent(name) : null; } catch { say("The address of this run is malformed."); }
  view = run == null ? new AllRuns() : new OneRun(run);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  if (view?.curve) view.draw();
  if (view?.detail) view.take(view.detail);
}

const preferred = matchMedia("(prefers-color-scheme: dark)");
function remembered() {
  try { return localStorage.getItem("crashproof-theme"); } catch { return null; }
}
setTheme(remembered() ?? (preferred.matches ? "dark" : "light"));
preferred.addEventListener("change", () => { if (!remembered()) setTheme(preferred.matches ? "dark" : "light"); });

function switchTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("crashproof-theme", theme); } catch { /* Without storage the choice lasts as long as the page. */ }
  setTheme(theme);
}

document.getElementById("theme").addEventListener("click", switchTheme);
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
document.addEventListener("keydown", (event) => {
  const isTyping = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping || document.getElementById("keys").open) return;
  if (event.key === "t") switchTheme();
  else if (event.key === "?") document.getElementById("keys").showModal();
  else if (!view?.key(event.key)) return;
  event.preventDefault();
});
addEventListener("hashchange", route);
route();
