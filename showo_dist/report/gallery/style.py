"""How the page looks: light and dark, from phones to wide screens."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e24; --faint: #5d626d; --paper: #ffffff; --line: #dfe2e8;
  --soft: #f4f5f8; --accent: #0b63b0; --veil: rgb(214 218 226 / 0.92);
  --c0: #0072b2; --c1: #c04c00; --c2: #00805f; --c3: #b0578c; --c4: #9a6a00; --c5: #2a84b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --faint: #a0a6b2; --paper: #15171c;
  --line: #343842; --soft: #1e2128; --accent: #7fb8ee; --veil: rgb(52 56 66 / 0.92);
  --c0: #5fb0e6; --c1: #f08a4b; --c2: #3fc9a0; --c3: #e29ac4; --c4: #e6b64c; --c5: #8fd0f4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.25rem 0 0.5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; padding-bottom: 0.25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p { margin: 0.5rem 0; }
.faint, figcaption { color: var(--faint); font-size: 0.85rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.strip { display: flex; gap: 0.75rem; overflow-x: auto; margin: 0; padding: 4px 4px 0.5rem;
  list-style: none; }
.strip > li { flex: 1 0 8.5rem; max-width: 16rem; }
.strip figure { margin: 0; }
.strip button { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in; }
.image { display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: 4px;
  background: var(--soft); box-shadow: 0 0 0 1px var(--line); }
.small .image { image-rendering: pixelated; }
figcaption { margin-top: 0.3rem; overflow-wrap: anywhere; }
.stack { position: relative; }
.stack svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.stack path { fill: var(--veil); }
.unmasked .stack svg { visibility: hidden; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 1rem; margin: 0.5rem 0 0.75rem; }
.controls button { min-width: 5rem; min-height: 2.5rem; padding: 0 0.9rem; font: inherit; color: var(--ink);
  background: var(--soft); border: 1px solid var(--line); border-radius: 4px; cursor: pointer; }
.controls input[type=range] { flex: 1 1 12rem; min-height: 2.5rem; accent-color: var(--accent); }
.controls input[type=checkbox] { width: 1.15rem; height: 1.15rem; accent-color: var(--accent); }
.controls label { display: flex; align-items: center; gap: 0.5rem; min-height: 2.5rem; }
.controls output { min-width: 9.5rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--faint); font-size: 12px; }
.rule { stroke: var(--line); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.key { display: inline-block; width: 1.1rem; height: 0.25rem; margin-right: 0.4rem; border-radius: 2px;
  vertical-align: middle; }
.key.c0 { background: var(--c0); } .key.c1 { background: var(--c1); } .key.c2 { background: var(--c2); }
.key.c3 { background: var(--c3); } .key.c4 { background: var(--c4); } .key.c5 { background: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 0.1rem 1.1rem; margin: 0.4rem 0 0; padding: 0;
  list-style: none; font-size: 0.88rem; }
dialog { width: min(94vw, 44rem); max-height: 94vh; padding: 1rem; color: var(--ink);
  background: var(--paper); border: 1px solid var(--line); border-radius: 6px; }
dialog::backdrop { background: rgb(0 0 0 / 0.6); }
dialog .controls { justify-content: space-between; margin: 0.75rem 0 0; }
dialog .image { max-height: 70vh; object-fit: contain; }
@media (max-width: 40rem) { .chart text { font-size: 18px; } }
@media (prefers-reduced-motion: reduce) { * { scroll-behavior: auto; } }
"""
