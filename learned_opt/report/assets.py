"""Style sheet and script of the page, inline so that one file is all there is."""

from __future__ import annotations

CSS = """
:root { --ink:#1f2933; --soft:#52606d; --line:#d9dfe5; --paper:#fff; --back:#f5f6f8;
  --accent:#0072b2; --learned:#fff6ee; }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; scroll-padding-top:64px; }
body { margin:0; background:var(--back); color:var(--ink);
  font:16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main, header.top { max-width:1180px; margin:0 auto; padding:0 20px; }
header.top { padding-top:40px; }
h1 { font-size:32px; line-height:1.2; margin:0 0 12px; letter-spacing:-.01em; }
h2 { font-size:23px; line-height:1.3; margin:0 0 4px; letter-spacing:-.005em; }
h3 { font-size:17px; line-height:1.3; margin:0; }
p { margin:0 0 12px; max-width:72ch; }
.lead { font-size:18px; }
.hint, figcaption p { color:var(--soft); font-size:15px; }
section { margin:44px 0; }
small { font-size:14px; color:var(--soft); }
code { font:14px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
a { color:var(--accent); }
.chips { display:flex; flex-wrap:wrap; gap:8px; padding:0; margin:18px 0 0; list-style:none; }
.chips li { background:var(--paper); border:1px solid var(--line); border-radius:999px;
  padding:3px 13px; font-size:15px; }
.chips b { font-weight:600; }
nav { display:flex; gap:20px; overflow-x:auto; margin-top:22px; padding-bottom:8px;
  border-bottom:1px solid var(--line); white-space:nowrap; scrollbar-width:none; }
nav a { text-decoration:none; padding:6px 0; }
nav a:hover { text-decoration:underline; }
.box { border-radius:8px; padding:14px 18px; margin:24px 0 0; border:1px solid; }
.box p { margin:0; max-width:none; } .box p + p { margin-top:6px; }
.box.good { background:#eef7f2; border-color:#b5dbc9; }
.box.bad { background:#fdecea; border-color:#e8a59b; }
.scroll { overflow-x:auto; background:var(--paper); border:1px solid var(--line);
  border-radius:8px; }
.scroll.tall, .tall .scroll { max-height:460px; overflow-y:auto; }
table { border-collapse:collapse; width:100%; font-size:15px; }
th, td { padding:8px 12px; text-align:left; vertical-align:middle; }
td { white-space:nowrap; }
th { background:#eef0f3; position:sticky; top:0; z-index:1; padding:0; }
th button { font:inherit; font-size:14px; font-weight:600; line-height:1.3; color:inherit;
  background:none; border:0; padding:9px 12px; width:100%; text-align:left; cursor:pointer; }
th[aria-sort=ascending] button::after { content:"\\00a0\\2191"; }
th[aria-sort=descending] button::after { content:"\\00a0\\2193"; }
tbody tr { border-top:1px solid var(--line); }
tbody td:first-child { position:sticky; left:0; background:var(--paper); }
tr.learned td, tr.learned td:first-child { background:var(--learned); font-weight:600; }
tr.learned small { font-weight:400; }
tr.muted { color:var(--soft); }
tr.muted svg { opacity:.45; }
.who { display:inline-flex; align-items:center; gap:8px; }
.pill { font-size:14px; font-weight:400; line-height:1.2; border:1px solid #e3b18f;
  border-radius:999px; padding:0 8px; background:#fff; }
.num { display:inline-block; vertical-align:middle; font-variant-numeric:tabular-nums; }
.num small { display:block; line-height:1.2; }
.mini { vertical-align:middle; margin-right:10px; }
.tabs { display:flex; gap:6px; overflow-x:auto; margin:14px 0; scrollbar-width:none; }
.tabs button, .legend button, .player button { font:inherit; font-size:15px; color:inherit;
  background:var(--paper); border:1px solid var(--line); border-radius:6px; padding:6px 13px;
  cursor:pointer; white-space:nowrap; min-height:38px; }
.tabs button[aria-pressed=true] { background:var(--ink); border-color:var(--ink); color:#fff; }
button:focus-visible, .scroll:focus-visible, a:focus-visible, input:focus-visible {
  outline:2px solid var(--accent); outline-offset:2px; }
.legend { position:sticky; top:0; z-index:5; background:var(--back); display:flex;
  flex-wrap:wrap; gap:6px; padding:9px 0; margin-top:44px; border-bottom:1px solid var(--line); }
.legend button { display:inline-flex; align-items:center; gap:7px; padding:2px 10px;
  min-height:36px; }
.legend button[aria-pressed=false] { opacity:.45; text-decoration:line-through; }
.legend button.all { color:var(--accent); border-color:transparent; background:none; }
.charts { display:grid; grid-template-columns:repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap:18px; margin-top:16px; }
.charts.small { grid-template-columns:repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.charts.wide { grid-template-columns:1fr; }
figure { margin:0; background:var(--paper); border:1px solid var(--line); border-radius:8px;
  padding:14px 14px 8px; min-width:0; }
figcaption { padding:0 4px; } figcaption p { margin:2px 0 6px; }
.plot { width:100%; min-width:0; overflow:hidden; }
.player { display:flex; align-items:center; flex-wrap:wrap; gap:4px 12px; padding:6px 4px; }
.player button { min-width:92px; min-height:42px; }
.player input { flex:1 1 130px; min-width:0; accent-color:var(--accent); height:32px; }
.player output { font-size:15px; color:var(--soft); font-variant-numeric:tabular-nums;
  min-width:19ch; }
.family { margin:26px 0 -4px; font-size:17px; font-weight:600; }
details { margin-top:14px; } summary { cursor:pointer; padding:6px 0; font-weight:600; }
details > .scroll { margin-top:8px; }
.facts { display:grid; grid-template-columns:repeat(auto-fill, minmax(150px, 1fr));
  gap:10px 24px; margin:12px 0 0; }
.facts dt { color:var(--soft); font-size:14px; } .facts dd { margin:0; overflow-wrap:anywhere; }
footer { color:var(--soft); font-size:15px; margin:40px 0; }
@media (max-width:640px) {
  main, header.top { padding-left:14px; padding-right:14px; }
  header.top { padding-top:24px; }
  h1 { font-size:26px; } h2 { font-size:21px; } .lead { font-size:17px; }
  section { margin:34px 0; }
  .legend { flex-wrap:nowrap; overflow-x:auto; margin-left:-14px; margin-right:-14px;
    padding-left:14px; padding-right:14px; }
  th button, td { padding-left:10px; padding-right:10px; }
  figure { padding:12px 6px 6px; } figcaption { padding:0 8px; }
}
@media print { .legend, .player, nav, .tabs { display:none; } }
"""

SCRIPT = """
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const hidden = new Set();
  const fine = matchMedia("(pointer: fine)").matches;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const seen = trace => !hidden.has(trace.legendgroup);

  // Tables sort by the column that is clicked; a second click turns the order.
  for (const button of all("table.sortable th button")) button.addEventListener("click", () => {
    const th = button.parentElement, head = th.parentElement, body = th.closest("table").tBodies[0];
    const column = [...head.children].indexOf(th);
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of head.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.sort;
    const isNumber = [...body.rows].every(row => key(row) !== "" && !isNaN(key(row)));
    const order = (a, b) => isNumber ? key(a) - key(b) : key(a).localeCompare(key(b));
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  });

  // On a phone, what is many comes folded.
  if (innerWidth < 640) for (const details of all("details.roomy")) details.open = false;

  // Tabs show one panel of their group.
  for (const tabs of all(".tabs[data-panels]")) {
    const buttons = all("button", tabs), panels = all("#" + tabs.dataset.panels + " > .panel");
    const choose = at => {
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === at));
      panels.forEach((panel, i) => { panel.hidden = i !== at; });
    };
    buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
    choose(0);
  }

  // Charts are drawn when they come near the screen: the page opens at once, whatever its length.
  const charts = new Map();
  const draw = async plot => {
    if (charts.has(plot)) return;
    const spec = JSON.parse(document.getElementById(plot.id + "-data").textContent);
    charts.set(plot, spec);
    const visible = spec.data.map(trace => seen(trace));
    spec.data.forEach((trace, i) => { trace.visible = visible[i]; });
    for (const name of ["xaxis", "yaxis"]) spec.layout[name].fixedrange = !fine;
    if (plot.closest("figure").dataset.steps) {
      const {range, dtick} = spec.layout.xaxis;
      spec.log = {type: "log", range: [...range], dtick};
      setScale(spec);
    }
    await Plotly.newPlot(plot, spec.data, spec.layout, {displayModeBar: false, responsive: true});
    if (spec.motion) animate(plot, spec.motion);
    plot.dataset.drawn = "true";
  };
  const near = new IntersectionObserver(entries => {
    for (const entry of entries) if (entry.isIntersecting) {
      near.unobserve(entry.target);
      draw(entry.target);
    }
  }, {rootMargin: "400px"});
  all(".plot").forEach(plot => near.observe(plot));

  // The legend switches a rule on and off in every chart.
  const legend = all(".legend button[data-rule]");
  const refresh = () => {
    for (const button of legend)
      button.setAttribute("aria-pressed", !hidden.has(button.dataset.rule));
    for (const [plot, spec] of charts) if (plot.dataset.drawn) {
      const at = spec.data.map((trace, i) => i).filter(i => spec.data[i].legendgroup);
      if (at.length) Plotly.restyle(plot, {visible: at.map(i => seen(spec.data[i]))}, at);
    }
  };
  for (const button of legend) button.addEventListener("click", () => {
    if (!hidden.delete(button.dataset.rule)) hidden.add(button.dataset.rule);
    refresh();
  });
  for (const button of all(".legend .all")) button.addEventListener("click", () => {
    if (hidden.size) hidden.clear(); else legend.forEach(b => hidden.add(b.dataset.rule));
    refresh();
  });

  // Gradient evaluations on a logarithmic or a linear axis, in all curves at once.
  let scale = "log";
  const setScale = spec => Object.assign(spec.layout.xaxis, scale === "log"
    ? {...spec.log, range: [...spec.log.range]}
    : {type: "linear", range: [0, Math.pow(10, spec.log.range[1])], dtick: null});
  for (const button of all("button[data-scale]")) button.addEventListener("click", () => {
    scale = button.dataset.scale;
    for (const other of all("button[data-scale]"))
      other.setAttribute("aria-pressed", other === button);
    for (const [plot, spec] of charts) if (plot.closest("figure").dataset.steps) {
      setScale(spec);
      if (plot.dataset.drawn) Plotly.react(plot, plot.data, spec.layout);
    }
  });

  // Paths grow frame by frame; the frames are made here from the paths, each of which comes once.
  const animate = (plot, motion) => {
    const player = plot.parentElement.querySelector(".player");
    const play = player.querySelector("button"), slider = player.querySelector("input");
    const clock = player.querySelector("output"), last = motion.times.length - 1;
    const traces = motion.paths.flatMap(path => [path.line, path.head]);
    const frames = motion.times.map((time, i) => ({
      name: String(i), traces,
      data: motion.paths.flatMap(path => {
        let n = path.step.findIndex(step => step > time);
        n = i === last || n < 0 ? path.step.length : Math.max(n, 1);
        return [{x: path.x.slice(0, n), y: path.y.slice(0, n)},
                {x: [path.x[n - 1]], y: [path.y[n - 1]]}];
      }),
    }));
    Plotly.addFrames(plot, frames);
    const settings = duration => ({mode: "immediate", transition: {duration: 0},
      frame: {duration, redraw: false}});
    const tell = at => {
      slider.value = at;
      const time = Math.round(motion.times[at]);
      clock.textContent = "after " + time.toLocaleString("en") +
        (time === 1 ? " gradient" : " gradients");
    };
    const label = on => {
      play.textContent = on ? "\\u275a\\u275a Pause" : "\\u25b6 Play";
      play.dataset.playing = on;
    };
    const stop = () => {
      label(false);
      return Plotly.animate(plot, [null], settings(0)).catch(() => {});
    };
    plot.on("plotly_animatingframe", event => tell(Number(event.name)));
    slider.addEventListener("input", async () => {
      const at = Number(slider.value);
      await stop();
      tell(at);
      Plotly.animate(plot, [String(at)], settings(0)).catch(() => {});
    });
    play.addEventListener("click", () => {
      if (play.dataset.playing === "true") { stop(); return; }
      const from = Number(slider.value) >= last ? 0 : Number(slider.value);
      label(true);
      const names = frames.slice(from).map(frame => frame.name);
      Plotly.animate(plot, names, settings(still ? 250 : 70)).then(() => label(false), () => {});
    });
    slider.max = last;
    label(false);
    tell(last);
    play.disabled = slider.disabled = false;
  };
})();
"""
