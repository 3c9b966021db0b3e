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
    return (100 * value).toFixed(1) + (unit === "share" ? "\u00a0%" : "\u00a0points");
  };

  const tick = (value, unit) =>
    unit === "plain" ? String(Number(value.toPrecision(4))) : `${Number((100 * value).toPrecision(4))}`
      + (unit === "share" ? "\u00a0%" : "");

  // A box above the cursor with the values of a round, the highest first.
  const tooltip = (plot, spec, series, said) => {
    const box = document.createElement("div");
    box.className = "tip";
    box.hidden = true;
    // Of very many, those worth a look and then the highest; the table has all.
    const entries = (index) => series
      .map(({ label, slot, strong, values }) => ({ label, slot, strong, value: values[index] }))
      .filter(({ value }) => value != null)
      .sort((a, b) => b.value - a.value)
      .sort((a, b) => (series.length > 12 ? b.strong - a.strong : 0))
      .slice(0, 12);
    const fill = (index) => {
      const head = document.createElement("strong");
      head.textContent = `Round ${spec.rounds[index]}`;
      const lines = entries(index).map(({ label, slot, value }) => {
        const line = document.createElement("span");
        line.className = `who slot-${slot}`;
        const dot = document.createElement("i");
        dot.className = "dot";
        const text = document.createElement("b");
        text.textContent = written(value, spec.unit);
        line.append(dot, label, text);
        return line;
      });
      box.replaceChildren(head, ...lines);
    };
    return {
      say: (index) => {
        const parts = entries(index).map(({ label, value }) => `${label} ${written(value, spec.unit)}`);
        said.textContent = `Round ${spec.rounds[index]}: ${parts.join(", ")}`;
      },
      plugin: {
        hooks: {
          init: (u) => u.over.append(box),
          setCursor: (u) => {
            const { idx, left } = u.cursor;
            // Charts share a cursor; only the one that a person is in speaks.
            const inside = u.over.matches(":hover") || plot.matches(":focus-visible");
            const here = idx != null && left >= 0 && inside;
            box.hidden = !here;
            if (!here) return;
            fill(idx);
            const middle = left - box.offsetWidth / 2;
            const most = u.over.clientWidth - box.offsetWidth;
            box.style.left = `${Math.round(Math.max(Math.min(0, most), Math.min(most, middle)))}px`;
          },
        },
      },
    };
  };

  const lineOf = (series) => ({
    label: series.label,
    stroke: () => colour(`--slot-${series.slot}`),
    width: series.slot === "merged" ? 1.5 : series.strong ? 3 : 1.75,
    dash: series.slot === "merged" ? [5, 4] : undefined,
    spanGaps: true,
    points: {
      show: true,
      size: series.strong && series.slot !== "merged" ? 7 : 4.5,
      fill: () => colour(`--slot-${series.slot}`),
      stroke: () => colour(`--slot-${series.slot}`),
    },
  });

  // From zero where values are shares, so that heights compare; never beyond what can be.
  const rangeOf = (unit) => (u, low, high) => {
    if (low == null) return [0, 1];
    const room = Math.max(high - low, 0.05) * 0.15;
    const top = unit === "plain" ? high + room : Math.min(1.02, high + room);
    // A little below zero, so that a line on the ground is not cut in half.
    return [unit === "plain" && low > room ? low - room : -0.03 * top, top];
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
    const tip = tooltip(plot, spec, series, figure.querySelector(".spoken"));
    const last = spec.rounds.length - 1;
    const chart = new uPlot({
      width: plot.clientWidth || 300,
      height: figure.closest(".wide") ? 260 : 190,
      padding: [10, 10, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        drag: { x: false, y: false },
        sync: { key: sync.key },
        points: { size: 9 },
        // The line stands on the round whose values are shown.
        move: (u, left, top) =>
          left < 0 ? [left, top] : [u.valToPos(u.data[0][u.posToIdx(left)], "x"), top],
      },
      scales: {
        x: { time: false, range: (u, low, high) => [low - 0.2, high + 0.2] },
        y: { range: rangeOf(spec.unit) },
      },
      axes: [
        axis({
          size: 28,
          grid: { show: false },
          splits: () => spec.rounds.filter((_, i) => i % Math.ceil(spec.rounds.length / 10) === 0),
          values: (u, all) => all.map(String),
        }),
        axis({ size: 48, values: (u, all) => all.map((each) => tick(each, spec.unit)) }),
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
