// Draws curves: a band from lowest to highest, the mean in it, the smoothed mean on top.
/* global uPlot */

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const NAMES = ["--blue", "--orange", "--green", "--pink", "--yellow", "--sky"];
const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3], [5, 2], [1, 2]];

export const look = (index) => ({ color: css(NAMES[index % NAMES.length]), dash: DASHES[index % DASHES.length] });

export function columnOf(series, kind) {
  return series[kind] ?? series.last;
}

// Append new points, which stand for one update or several.
export function append(curve, tail) {
  const before = curve.step.length;
  for (const name of ["first_step", "step", "time", "hours", "attempt"]) curve[name].push(...tail[name]);
  const length = curve.step.length;
  for (const name of new Set([...Object.keys(curve.series), ...Object.keys(tail.series)])) {
    const mine = (curve.series[name] ??= { last: Array(before).fill(null), non_finite: [] });
    const more = tail.series[name];
    const isWide = mine.low || more?.low;
    for (const kind of isWide ? ["low", "high", "mean", "last"] : ["last"]) {
      mine[kind] ??= mine.last.slice(0, before);
      mine[kind].push(...(more ? columnOf(more, kind) : Array(length - before).fill(null)));
    }
    for (const [at, many] of more?.non_finite ?? []) mine.non_finite.push([at + before, many]);
  }
  curve.end = tail.end;
  curve.num_updates += tail.num_updates;
}

export function smoothed(values, weight) {
  let average = null;
  let debias = 0;
  return values.map((value) => {
    if (value == null) return null;
    average = average == null ? (1 - weight) * value : weight * average + (1 - weight) * value;
    debias = weight * debias + (1 - weight);
    return average / debias;
  });
}

// The position of a step on the shown axis, interpolated between the points around it.
export function placeOf(curve, axis, step) {
  if (axis === "step" || !curve.step.length) return step;
  const xs = curve[axis];
  let low = 0;
  let high = curve.step.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (curve.step[middle] < step) low = middle + 1; else high = middle;
  }
  if (low === 0 || curve.step[low] <= step) return xs[low];
  const share = (step - curve.step[low - 1]) / (curve.step[low] - curve.step[low - 1]);
  return xs[low - 1] + share * (xs[low] - xs[low - 1]);
}

export class Chart {
  // keys: names of series; marks: () => {recomputed, attempts, checkpoints}, each with the steps they are at.
  constructor(holder, { keys, axis, isLog, onZoom, onReset, marks, height, sync, label }) {
    Object.assign(this, { holder, keys, axis, isLog, onZoom, onReset, marks, height, label });
    this.hidden = new Set();
    this.weight = 0;
    this.curve = null;
    this.looks = keys.map((_, index) => look(index));
    this.plot = new uPlot(this.options(sync), this.data(), holder);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(holder);
    this.plot.over.addEventListener("dblclick", () => onReset());
    holder.setAttribute("role", "img");
  }

  close() {
    this.observer.disconnect();
    this.plot.destroy();
  }

  resize() {
    const width = Math.max(200, Math.floor(this.holder.clientWidth));
    if (width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  show(curve, weight) {
    this.curve = curve;
    this.weight = weight;
    this.plot.setData(this.data());
    this.holder.setAttribute("aria-label", this.inWords());
  }

  inWords() {
    const parts = this.keys.map((key) => {
      const series = this.curve?.series[key];
      if (!series) return `${key}: no values`;
      const lows = columnOf(series, "low").filter((value) => value != null);
      const highs = columnOf(series, "high").filter((value) => value != null);
      const bad = series.non_finite.reduce((sum, [, many]) => sum + many, 0);
      if (!lows.length) return `${key}: ${bad} updates, all non-finite`;
      const extremes = `from ${lows.reduce((a, b) => Math.min(a, b))} to ${highs.reduce((a, b) => Math.max(a, b))}`;
      return `${key}: ${extremes}${bad ? `, ${bad} updates non-finite` : ""}`;
    });
    return `${this.label}. ${parts.join("; ")}`;
  }

  data() {
    const curve = this.curve;
    if (!curve) return [[], ...this.keys.flatMap(() => [[], [], [], []])];
    const fits = this.isLog ? (value) => (value != null && value > 0 ? value : null) : (value) => value;
    return [
      curve[this.axis],
      ...this.keys.flatMap((key) => {
        const series = curve.series[key];
        if (!series) return Array(4).fill(curve.step.map(() => null));
        const mean = columnOf(series, "mean").map(fits);
        const band = series.low ? [series.low.map(fits), series.high.map(fits)] : [mean, mean];
        return [...band, mean, this.weight ? smoothed(mean, this.weight) : mean];
      }),
    ];
  }

  toggle(key) {
    if (this.hidden.has(key)) this.hidden.delete(key); else this.hidden.add(key);
    const first = 1 + 4 * this.keys.indexOf(key);
    for (let at = first; at < first + 4; at += 1) this.plot.setSeries(at, { show: !this.hidden.has(key) });
  }

  options(sync) {
    const grid = { stroke: css("--line"), width: 1 };
    const axis = { stroke: css("--soft"), grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const faint = (color, share) => `color-mix(in srgb, ${color} ${share}%, transparent)`;
    return {
      width: Math.max(200, Math.floor(this.holder.clientWidth)),
      height: this.height,
      scales: { x: { time: this.axis === "time" }, y: { distr: this.isLog ? 3 : 1 } },
      cursor: { sync: { key: sync, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      axes: [
        { ...axis, size: 32, ...(this.axis === "time" ? {} : { values: (plot, splits) => splits.map(shortNumber) }) },
        { ...axis, size: 64, values: (plot, splits) => splits.map((value) => (value == null ? "" : shortNumber(value))) },
      ],
      series: [
        {},
        ...this.keys.flatMap((key, index) => {
          const { color, dash } = this.looks[index];
          const line = { stroke: color, points: { show: false }, spanGaps: false };
          const edge = { ...line, width: 1, stroke: faint(color, 60) };
          return [
            { ...edge, label: `${key} lowest` },
            { ...edge, label: `${key} highest` },
            { ...line, width: 1, stroke: color, alpha: 0.55, dash, label: `${key} mean` },
            { ...line, width: 2, dash, label: key, points: { show: (plot) => plot.data[0].length < 3 } },
          ];
        }),
      ],
      bands: this.keys.map((_, index) => ({ series: [2 + 4 * index, 1 + 4 * index], fill: faint(this.looks[index].color, 25) })),
      hooks: {
        drawClear: [(plot) => this.drawRecomputed(plot)],
        draw: [(plot) => this.drawMarks(plot)],
        setSelect: [(plot) => this.select(plot)],
      },
    };
  }

  select(plot) {
    if (plot.select.width < 4) return;
    const from = plot.posToVal(plot.select.left, "x");
    const to = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.onZoom(from, to);
  }

  place(plot, step) {
    return plot.valToPos(placeOf(this.curve, this.axis, step), "x", true);
  }

  drawRecomputed(plot) {
    if (!this.curve) return;
    const { left, top, width, height } = plot.bbox;
    const context = plot.ctx;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    for (const range of this.marks().recomputed) {
      const from = this.place(plot, range.first_step);
      const to = Math.max(from + 2, this.place(plot, range.last_step));
      context.fillStyle = css("--shade");
      context.fillRect(from, top, to - from, height);
      context.strokeStyle = css("--hatch");
      context.lineWidth = 1;
      context.beginPath();
      for (let x = from - height; x < to; x += 12) {
        const start = Math.max(x, from);
        const end = Math.min(x + height, to);
        if (end > start) { context.moveTo(start, top + (start - x)); context.lineTo(end, top + (end - x)); }
      }
      context.stroke();
    }
    context.restore();
  }

  drawMarks(plot) {
    if (!this.curve?.step.length) return;
    const { left, top, width, height } = plot.bbox;
    const context = plot.ctx;
    const unit = window.devicePixelRatio || 1;
    const isInside = (x) => x >= left - 1 && x <= left + width + 1;
    context.save();
    context.font = `${11 * unit}px system-ui, sans-serif`;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    const hasRoom = this.height >= 200;
    context.fillStyle = context.strokeStyle = css("--soft");
    context.setLineDash([3 * unit, 3 * unit]);
    let labelledTo = left;
    for (const each of this.marks().attempts) {
      const x = this.place(plot, each.step);
      if (!isInside(x)) continue;
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x, top + height);
      context.stroke();
      const text = `attempt ${each.attempt}`;
      if (hasRoom && x >= labelledTo) {
        context.fillText(text, x + 3 * unit, top + 12 * unit);
        labelledTo = x + context.measureText(text).width + 8 * unit;
      }
    }
    context.setLineDash([]);
    for (const each of this.marks().checkpoints) {
      const x = this.place(plot, each.step);
      if (!isInside(x)) continue;
      const size = 4 * unit;
      const y = top + height - size;
      context.beginPath();
      context.moveTo(x, y - size);
      context.lineTo(x + size, y);
      context.lineTo(x, y + size);
      context.lineTo(x - size, y);
      context.closePath();
      if (each.isVerifiable) context.fill(); else context.stroke();
    }
    context.fillStyle = context.strokeStyle = css("--bad");
    for (const [index, key] of this.keys.entries()) {
      if (this.hidden.has(key)) continue;
      for (const [at] of this.curve.series[key]?.non_finite ?? []) {
        const x = plot.valToPos(this.curve[this.axis][at], "x", true);
        if (!isInside(x)) continue;
        const y = top + (18 + 10 * index) * unit;
        context.beginPath();
        context.moveTo(x - 5 * unit, y);
        context.lineTo(x + 5 * unit, y);
        context.lineTo(x, y + 8 * unit);
        context.closePath();
        context.fill();
        context.beginPath();
        context.moveTo(x, y);
        context.lineTo(x, top + height);
        context.globalAlpha = 0.5;
        context.stroke();
        context.globalAlpha = 1;
      }
    }
    context.restore();
  }
}

export function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(4))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(6)));
}
