// Draws the charts of the page from the JSON in #plots:
//   runs: last, checkpoints, restarts (steps), mark_checkpoints, and clock: seconds spent
//     in steps until some steps, between which it is a line;
//   charts: id of the element, form of values (d3), log, and series: run (its number),
//     place (in the chart), name, x (steps), y (null where not finite).
// Names are escaped for Plotly already.
(() => {
  "use strict";
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isTouch = () => matchMedia("(pointer: coarse)").matches;
  let plots = {runs: [], charts: []};
  let axis = "steps", marks = true, zooming = false;

  // Hours in steps until a step of a run.
  const hours = (run, step) => {
    const {steps, secs} = run.clock;
    let low = 0, high = steps.length - 1;
    if (step >= steps[high]) return secs[high] / 3600;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    const share = (step - steps[low]) / Math.max(1, steps[high] - steps[low]);
    return (secs[low] + share * (secs[high] - secs[low])) / 3600;
  };
  const place = (run, step) => axis === "steps" ? step : hours(run, step);
  const shown = (run) => axis === "steps" || run.clock;
  const colour = (one) => css(`--run-${(plots.runs.length > 1 ? one.run : one.place) % 8}`);

  const traces = (chart) => chart.series.filter((one) => shown(plots.runs[one.run])).map((one) => ({
    type: "scatter",
    // A few points would be invisible as a line.
    mode: one.x.length < 30 ? "lines+markers" : "lines",
    name: one.name,
    x: one.x.map((step) => place(plots.runs[one.run], step)),
    y: one.y,
    yhoverformat: chart.form,
    line: {
      color: colour(one), width: 1.8,
      dash: plots.runs.length > 1 || chart.id === "chart-loss" ? DASHES[one.place % 4] : "solid",
    },
    marker: {size: 5},
  }));

  const lines = () => !marks ? [] : plots.runs.flatMap((run, number) => {
    if (!shown(run)) return [];
    const line = (step, style) => ({
      type: "line", yref: "paper", y0: 0, y1: 1, layer: "below",
      x0: place(run, step), x1: place(run, step), line: style,
    });
    const several = plots.runs.length > 1;
    const tint = (name) => several ? css(`--run-${number % 8}`) : css(name);
    const saved = run.mark_checkpoints && !several ? run.checkpoints : [];
    return [
      ...saved.map((step) => line(step, {color: css("--saved"), width: 1})),
      ...run.restarts.map((step) => line(step, {color: tint("--restart"), width: 1.2, dash: "dot"})),
    ];
  });

  const base = () => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: getComputedStyle(document.body).fontFamily, size: 11, color: css("--muted")},
    hoverlabel: {
      bgcolor: css("--panel"), bordercolor: css("--line"), namelength: -1,
      font: {color: css("--fg"), size: 12},
    },
    modebar: {bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent")},
    dragmode: isTouch() ? false : "zoom",
  });
  const grid = () => ({
    gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true,
  });
  const xaxis = () => ({
    ...grid(), showgrid: false, ticks: "outside", tickcolor: css("--line"), nticks: 6,
    hoverformat: axis === "steps" ? ",d" : ".3f", tickformat: axis === "steps" ? "~s" : "",
    title: {text: axis === "steps" ? "steps" : "training hours", standoff: 6, font: {size: 11}},
    rangemode: "normal",
  });

  const layout = (chart) => ({
    ...base(),
    margin: {l: 44, r: 10, t: 8, b: 34},
    xaxis: xaxis(),
    yaxis: {
      ...grid(), nticks: 6, type: chart.log ? "log" : "linear",
      tickformat: chart.form.endsWith("%") ? ".3~p" : chart.log ? ".1~g" : "",
    },
    hovermode: "x unified",
    // Of several runs, the page says what solid and dashed lines are.
    showlegend: plots.runs.length === 1 && chart.series.length > 1,
    legend: {orientation: "h", x: 0, y: 1, yanchor: "bottom", font: {size: 11, color: css("--fg")}},
    shapes: lines(),
  });

  const timeline = () => {
    const points = (name, symbol, pick, run, number) => ({
      type: "scatter", mode: "markers", name,
      x: pick.map((step) => place(run, step)), y: pick.map(() => number),
      customdata: pick, marker: {symbol, size: symbol === "line-ns-open" ? 16 : 10, color: css(name === "restart" ? "--restart" : `--run-${number % 8}`), line: {width: 2}},
      hovertemplate: `${name}: step %{customdata:,}<extra></extra>`,
    });
    return plots.runs.flatMap((run, number) => !shown(run) ? [] : [
      {
        type: "scatter", mode: "lines", hoverinfo: "skip",
        x: [0, Math.max(run.last, ...run.checkpoints, 0)].map((step) => place(run, step)),
        y: [number, number], line: {color: css(`--run-${number % 8}`), width: 3},
      },
      points("checkpoint", "line-ns-open", run.checkpoints, run, number),
      points("restart", "triangle-down", run.restarts, run, number),
    ]);
  };
  const timelineLayout = () => ({
    ...base(), margin: {l: 10, r: 10, t: 8, b: 34}, hovermode: "closest", showlegend: false,
    xaxis: {...xaxis(), rangemode: "tozero"},
    yaxis: {visible: false, range: [plots.runs.length - 0.5, -0.5], fixedrange: true},
  });

  const options = () => ({
    responsive: true, displaylogo: false, displayModeBar: isTouch() ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });

  // All charts over steps show the same stretch of them.
  const follow = (chart, change) => {
    if (zooming) return;
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    const update = from !== undefined ? {"xaxis.range": [from, to], "xaxis.autorange": false}
      : change["xaxis.autorange"] ? {"xaxis.autorange": true, "yaxis.autorange": true} : null;
    if (!update) return;
    zooming = true;
    const others = plots.charts.filter((other) => other.id !== chart.id)
      .map((other) => document.getElementById(other.id)).filter((element) => element.data);
    Promise.all(others.map((element) => Plotly.relayout(element, update)))
      .finally(() => { zooming = false; });
  };

  const draw = (chart) => {
    const element = document.getElementById(chart.id);
    if (element.closest("details:not([open])")) return;
    const isNew = !element.data;
    Plotly.react(element, traces(chart), layout(chart), options());
    if (isNew) element.on("plotly_relayout", (change) => follow(chart, change));
  };
  const drawAll = () => {
    plots.charts.forEach(draw);
    const element = document.getElementById("timeline");
    if (element) {
      element.style.height = `${60 + 28 * plots.runs.length}px`;
      Plotly.react(element, timeline(), timelineLayout(), options());
    }
    document.documentElement.dataset.drawn = "true";
  };

  document.addEventListener("DOMContentLoaded", () => {
    plots = JSON.parse(document.getElementById("plots").textContent);
    drawAll();
    const controls = document.querySelector(".controls");
    if (controls) {
      controls.hidden = false;
      if (!plots.runs.some((run) => run.clock))
        controls.querySelector("[value=hours]").parentElement.hidden = true;
      controls.addEventListener("change", (event) => {
        if (event.target.name === "axis") axis = event.target.value;
        else marks = event.target.checked;
        drawAll();
      });
    }
    for (const details of document.querySelectorAll("details"))
      details.addEventListener("toggle", () => { if (details.open) drawAll(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    // Paper is light, and narrower than most screens.
    const forPrint = matchMedia("print");
    forPrint.addEventListener("change", () => {
      drawAll();
      document.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.Plots.resize(plot));
    });
  });
})();
