// Formats numbers and states for people.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export const count = (value) => (value == null ? "unknown" : whole.format(value));

export function number(value, digits = 4) {
  if (value == null) return "non-finite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(Math.max(0, digits - 2));
  return String(Number(value.toPrecision(digits + 1)));
}

export const rate = (value) => (value >= 100 ? count(value) : number(value, 2));

export function duration(seconds) {
  if (seconds == null) return "unknown";
  const minutes = Math.floor(Math.round(seconds) / 60);
  const hours = Math.floor(minutes / 60);
  const days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds) % 60} s` : `${Math.round(seconds)} s`;
}

export const hoursLong = (hours) => duration(hours == null ? null : hours * 3600);

export const ago = (then, now) => (then == null ? "never" : `${duration(Math.max(0, now - then))} ago`);

export const bytes = (size) => {
  if (size == null) return "unknown";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (size >= 1000 && at < units.length - 1) { size /= 1000; at += 1; }
  return `${at ? size.toFixed(1) : size} ${units[at]}`;
};

export const dollars = (amount) => {
  if (amount == null) return "unknown";
  return `$${amount !== 0 && Math.abs(amount) < 0.01 ? amount.toPrecision(2) : amount.toFixed(2)}`;
};

export const moment = (seconds) =>
  seconds == null
    ? "unknown"
    : new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

const STATES = {
  starting: ["○", "idle"], running: ["▶", "good"], stalled: ["‖", "bad"], diverging: ["↗", "bad"],
  non_finite: ["∅", "bad"], saves_failing: ["▽", "bad"], complete: ["✓", "good"], ended_early: ["◧", "idle"], preempted: ["◧", "idle"],
  raised: ["✕", "bad"], crashed: ["✕", "bad"], replaced: ["◧", "idle"], not_started: ["○", "idle"],
  unreadable: ["?", "bad"], adopted: ["○", "idle"],
};

export function stateOf(health) {
  const [sign, kind] = STATES[health] ?? ["?", "idle"];
  return { sign, kind, word: String(health).replaceAll("_", " ") };
}

export const TITLES = {
  loss: "Loss", learning_rate: "Learning rate", throughput_tokens_per_sec: "Tokens per second", throughput_samples_per_sec: "Samples per second",
};

export const titleOf = (series) => TITLES[series] ?? series.replaceAll("_", " ");

export function checkpointState({ state, reason }) {
  return reason ? `${state}: ${reason}` : state;
}

export function newestCheckpoint({ last_checkpoint_step: step, failed_saves: failed }) {
  const newest = step == null ? "none" : `step ${count(step)}`;
  return failed?.in_a_row ? `${newest}; ${count(failed.in_a_row)} failed since: ${failed.error}` : newest;
}

const VERDICTS = {
  improving: "The loss is falling.", plateau: "The loss has plateaued.", diverging: "The loss is rising.",
  unstable: "The loss is unstable: frequent spikes or growing noise.",
  non_finite: "The loss is non-finite.", unknown: "Too few updates to tell.",
};

export const verdict = (name) => VERDICTS[name] ?? name;

export function remaining(summary) {
  if (summary.steps_completed >= summary.total_steps_target) return "none";
  if (summary.estimated_remaining_hours == null) return "unknown";
  const range = [summary.estimated_remaining_hours_low, summary.estimated_remaining_hours_high].map(hoursLong);
  const span = range[0] === range[1] ? "" : ` (${range[0]} to ${range[1]})`;
  return hoursLong(summary.estimated_remaining_hours) + span;
}
