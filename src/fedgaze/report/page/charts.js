"use strict";
// Line charts by uPlot. Colours come from the page's style, so that light, dark and print differ
// there and nowhere else.
{
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const charts = [];
  const sync = uPlot.sync("rounds");

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const written = (value, unit) => {
    if (value == null) return "–";
    if (unit === "plain") return value.toFixed(3);
    return (100 * value).toFixed(1) + (unit === "share" ? " %" : " points");
  };

  const tick = (value, unit) =>
    unit === "plain" ? String(Number(value.toPrecision(4))) : `${Number((100 * value).toPrecision(4))}`
      + (unit === "share" ? " %" : "");

  // A box beside the cursor with the values of a round, the highest first.
  const tooltip = (spec, series, said) => {
    const box = document.createElement("div");
    box.className = "tip";
    box.hidden = true;
    const fill = (index) => {
      const head = document.createElement("strong");
      head.textContent = `Round ${spec.rounds[index]}`;
      const lines = series
        .map((each) => ({ ...each, value: each.values[index] }))
        .filter((each) => each.value != null)
        .sort((a, b) => b.value - a.value)
        .map((each) => {
          const line = document.createElement("span");
          line.className = `who slot-${each.slot}`;
          const dot = document.createElement("i");
          dot.className = "dot";
          const value = document.createElement("b");
          value.textContent = written(each.value, spec.unit);
          line.append(dot, each.label, value);
          return line;
        });
      box.replaceChildren(head, ...lines);
      return [head, ...lines].map((each) => each.textContent.replace(/(\d\.\d+)/, " $1")).join(", ");
    };
    return {
      say: (index) => { said.textContent = fill(index); },
      plugin: {
        hooks: {
          init: (u) => u.over.append(box),
          setCursor: (u) => {
            const { idx, left } = u.cursor;
            const here = idx != null && left >= 0 && (u.over.matches(":hover") || u.root.parentElement.matches(":focus-visible"));
            box.hidden = !here;
            if (!here) return;
            fill(idx);
            const x = u.valToPos(spec.rounds[idx], "x");
            const room = u.over.clientWidth - x;
            box.style.left = room > box.offsetWidth + 16 ? `${x + 12}px` : `${Math.max(0, x - box.offsetWidth - 12)}px`;
          },
        },
      },
    };
  };

  const lineOf = (series) => ({
    label: series.label,
    stroke: () => colour(`--slot-${series.slot}`),
    width: series.strong ? 3 : 1.75,
    dash: series.slot === "merged" ? [5, 4] : undefined,
    alpha: 1,
    spanGaps: true,
    points: { show: true, size: series.strong ? 7 : 5, fill: () => colour("--card") , stroke: () => colour(`--slot-${series.slot}`) },
  });

  // From zero where values are shares, so that heights compare; never beyond what can be.
  const rangeOf = (unit) => (u, low, high) => {
    if (low == null) return [0, 1];
    const room = Math.max(high - low, 0.05) * 0.15;
    if (unit === "plain") return [Math.max(0, low - room), high + room];
    return [0, Math.min(1.02, high + room)];
  };

  const axis = (extra) => ({
    stroke: () => colour("--muted"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
    ...extra,
  });

  const draw = (plot) => {
    const figure = plot.closest("figure");
    const spec = data[figure.dataset.chart];
    const series = spec.series[plot.dataset.source];
    // Strong lines last, so that they lie on top.
    const drawn = [...series].sort((a, b) => a.strong - b.strong);
    const tip = tooltip(spec, series, figure.querySelector(".spoken"));
    const last = spec.rounds.length - 1;
    const chart = new uPlot({
      width: plot.clientWidth || 300,
      height: figure.closest(".wide") ? 260 : 190,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: sync.key }, points: { size: 9 } },
      scales: {
        x: { time: false, range: (u, low, high) => [low - 0.2, high + 0.2] },
        y: { range: rangeOf(spec.unit) },
      },
      axes: [
        axis({ size: 28, grid: { show: false }, splits: () => spec.rounds.filter((_, i) => i % Math.ceil(spec.rounds.length / 10) === 0), values: (u, all) => all.map(String) }),
        axis({ size: 52, values: (u, all) => all.map((each) => tick(each, spec.unit)) }),
      ],
      series: [{}, ...drawn.map(lineOf)],
      plugins: [tip.plugin],
    }, [spec.rounds, ...drawn.map((each) => each.values)], plot);
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const now = chart.cursor.idx;
      const next = now == null ? (step > 0 ? 0 : last) : Math.min(last, Math.max(0, now + step));
      chart.setCursor({ left: chart.valToPos(spec.rounds[next], "x"), top: 0 });
      tip.say(next);
    });
    plot.addEventListener("blur", () => chart.setCursor({ left: -10, top: -10 }));
    sync.sub(chart);
    charts.push([plot, chart]);
  };

  const fit = () => {
    for (const [plot, chart] of charts) {
      if (plot.clientWidth) chart.setSize({ width: plot.clientWidth, height: chart.height });
    }
  };

  const choose = (source) => {
    for (const each of document.querySelectorAll("#looks ~ .charts [data-source]")) {
      each.hidden = each.dataset.source !== source;
    }
    fit();
  };

  for (const plot of document.querySelectorAll(".plot")) draw(plot);
  const sources = document.querySelectorAll("#source input");
  if (sources.length) {
    for (const each of sources) each.addEventListener("change", () => choose(each.value));
    choose([...sources].find((each) => each.checked).value);
  }

  const redraw = () => { for (const [, chart] of charts) chart.redraw(false); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", () => { fit(); redraw(); });
  let waiting;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(fit);
  });
}
