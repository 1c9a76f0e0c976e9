// All devices of the pool as cells: one canvas that draws what is seen of it, so that eighty thousand are no burden.

import { h, plural } from "./dom.js";

const WORDS = { u: "used", i: "idle", x: "unwell", c: "cordoned", l: "lost" };
const PER_LINE = 8;

/** The hue of a job: neighbours in number are far apart, and none is the red or amber of what is not well. */
export const hue = (job) => Math.round(65 + ((job * 166.87) % 270));

/**
 * The cells. `on.open(node)` is called where one is chosen; `on.by()` says what colours mean: "state" or "job".
 * Returns the element and `show(devices)`.
 */
export function grid(on) {
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": "devices of the pool" });
  const spacer = h("div", { class: "spacer" });
  const el = h("div", { class: `cells ${on.low ? "low" : ""}` }, canvas, spacer);
  const tip = document.getElementById("tip");
  let data = { nodes: [], classes: [], jobs: {} };
  let lay = { blocks: [], cell: 12, height: 0 };
  let cursor; // [block, device]
  let frame;

  function show(devices) {
    data = devices;
    const order = new Intl.Collator("en", { numeric: true });
    data.nodes.sort((a, b) => order.compare(a.name, b.name));
    layout();
  }

  /** Blocks of nodes from left to right; large pools have smaller cells, and no names. */
  function layout() {
    const width = Math.max(el.clientWidth - 2, 160);
    const nodes = on.filter ? data.nodes.filter(on.filter) : data.nodes;
    const devices = nodes.reduce((sum, node) => sum + Math.max(node.does.length, 1), 0);
    const names = nodes.length <= 400;
    const cell = devices <= 256 ? 18 : devices <= 1500 ? 13 : devices <= 12000 ? 8 : 5;
    const gap = cell >= 8 ? 2 : 1;
    const step = cell + gap;
    const blocks = [];
    let [x, y, line] = [0, 0, 0];
    for (const node of nodes) {
      const across = Math.min(PER_LINE, Math.max(node.does.length, 1));
      const wide = Math.max(across * step, names ? 8 * step : 0);
      const high = Math.ceil(Math.max(node.does.length, 1) / PER_LINE) * step + (names ? 16 : 0);
      if (x + wide > width && x > 0) [x, y, line] = [0, y + line + (names ? 10 : 4), 0];
      blocks.push({ node, x, y, wide, high });
      x += wide + (names ? 18 : 5);
      line = Math.max(line, high);
    }
    lay = { blocks, cell, step, names, height: y + line };
    spacer.style.height = `${lay.height}px`;
    canvas.setAttribute("aria-label", `${plural(devices, "device")} of ${plural(nodes.length, "node")}; arrows move, Enter opens`);
    paint();
  }

  function paint() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const colors = { u: color("--used"), i: color("--idle"), x: color("--bad"), c: color("--closed"), l: color("--lost") };
    const [text, quiet, ring, dark] = ["--text", "--quiet", "--accent", "--dark"].map(color);
    const [width, height] = [el.clientWidth, Math.min(el.clientHeight, Math.max(lay.height, 24))];
    const ratio = window.devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.style.marginBottom = `${-height}px`;
    const brush = canvas.getContext("2d");
    brush.scale(ratio, ratio);
    brush.translate(0, -el.scrollTop);
    brush.font = `11px ${style.getPropertyValue("--sans")}`;
    const byJob = on.by() === "job";
    for (const block of seen()) {
      const { node, x, y } = block;
      if (lay.names) {
        brush.fillStyle = node.state === "up" ? quiet : colors.x;
        brush.fillText(node.state === "up" ? node.name : `${node.name} · ${node.state}`, x, y + 11, block.wide + 14);
      }
      for (let at = 0; at < Math.max(node.does.length, 1); at += 1) {
        const [cx, cy] = place(block, at);
        const does = node.does[at];
        if (!does) {
          brush.strokeStyle = colors.i;
          brush.strokeRect(cx + 0.5, cy + 0.5, lay.cell - 1, lay.cell - 1);
          continue;
        }
        const job = node.jobs[at];
        brush.fillStyle = colors[does];
        if (byJob && does === "u" && job) brush.fillStyle = `hsl(${hue(job)} 58% ${(dark === "1" ? 60 : 48) - 9 * (job % 3)}%)`;
        if (does === "i") {
          brush.globalAlpha = 0.55;
        }
        brush.beginPath();
        brush.roundRect(cx, cy, lay.cell, lay.cell, lay.cell > 9 ? 3 : 1);
        brush.fill();
        brush.globalAlpha = 1;
        mark(brush, does, cx, cy, text);
      }
    }
    if (cursor && document.activeElement === canvas) {
      const block = lay.blocks[cursor[0]];
      if (!block) return;
      const [cx, cy] = place(block, cursor[1]);
      brush.strokeStyle = ring;
      brush.lineWidth = 2;
      brush.strokeRect(cx - 1.5, cy - 1.5, lay.cell + 3, lay.cell + 3);
    }
  }

  /** Shapes beside colours: a cross is unwell, a slash is cordoned, a dot is lost. */
  function mark(brush, does, x, y, color) {
    if (lay.cell < 8 || !"xcl".includes(does)) return;
    const [near, far] = [lay.cell * 0.28, lay.cell * 0.72];
    brush.strokeStyle = does === "x" ? "#fff" : color;
    brush.lineWidth = 1.5;
    brush.beginPath();
    if (does === "l") {
      brush.arc(x + lay.cell / 2, y + lay.cell / 2, lay.cell * 0.14, 0, 7);
    } else {
      brush.moveTo(x + near, y + far);
      brush.lineTo(x + far, y + near);
      if (does === "x") {
        brush.moveTo(x + near, y + near);
        brush.lineTo(x + far, y + far);
      }
    }
    brush.stroke();
  }

  const place = (block, at) => [
    block.x + (at % PER_LINE) * lay.step,
    block.y + (lay.names ? 16 : 0) + Math.floor(at / PER_LINE) * lay.step,
  ];

  function seen() {
    const [top, bottom] = [el.scrollTop - 40, el.scrollTop + el.clientHeight + 40];
    return lay.blocks.filter((block) => block.y + block.high > top && block.y < bottom);
  }

  /** What is under a point of the window. */
  function under(event) {
    const edge = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - edge.left, event.clientY - edge.top + el.scrollTop];
    const at = lay.blocks.findIndex((it) => x >= it.x - 2 && x < it.x + it.wide + 4 && y >= it.y && y < it.y + it.high);
    if (at < 0) return undefined;
    const block = lay.blocks[at];
    const line = Math.floor((y - block.y - (lay.names ? 16 : 0)) / lay.step);
    const device = line * PER_LINE + Math.floor((x - block.x) / lay.step);
    return [at, line >= 0 && x - block.x < PER_LINE * lay.step && device < block.node.does.length ? device : undefined];
  }

  function tell(found, x, y) {
    tip.hidden = !found;
    if (!found) return;
    const { node } = lay.blocks[found[0]];
    const device = found[1];
    const lines = [h("b", {}, device === undefined ? node.name : `${node.name} · device ${device}`)];
    if (device === undefined) {
      lines.push(`${node.state}, ${plural(node.does.length, "device")}`);
    } else {
      const job = node.jobs[device];
      const known = data.jobs[job];
      const [vendor, model] = data.classes[node.classes[node.classes.length > 1 ? device : 0]] ?? ["", ""];
      lines.push(`${vendor} ${model}`, h("span", { class: `tip-${WORDS[node.does[device]]}` }, WORDS[node.does[device]]));
      if (node.why?.[device]) lines.push(node.why[device]);
      if (job) lines.push(`job-${job}${known ? ` ${known[0]}` : ""}`, known && `${known[1]} in ${known[2]}`);
    }
    tip.replaceChildren(...lines.filter(Boolean).map((line) => h("div", {}, line)));
    const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.min(x + 14, window.innerWidth - wide - 8)}px`;
    tip.style.top = `${y + 18 + high > window.innerHeight ? y - high - 10 : y + 18}px`;
  }

  const atCursor = () => {
    const block = lay.blocks[cursor[0]];
    const [x, y] = place(block, cursor[1]);
    if (y < el.scrollTop + 20 || y > el.scrollTop + el.clientHeight - 40) el.scrollTop = y - el.clientHeight / 2;
    const edge = canvas.getBoundingClientRect();
    tell(cursor, edge.left + x, edge.top + y - el.scrollTop);
    paint();
  };
  const keys = {
    ArrowRight: ([b, d]) => (d + 1 < lay.blocks[b].node.does.length ? [b, d + 1] : [b + 1, 0]),
    ArrowLeft: ([b, d]) => (d > 0 ? [b, d - 1] : [b - 1, 0]),
    ArrowDown: ([b]) => [b + 1, 0],
    ArrowUp: ([b]) => [b - 1, 0],
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && cursor) on.open(lay.blocks[cursor[0]].node.name, cursor[1]);
    if (event.key === "Escape") tip.hidden = true;
    const move = keys[event.key];
    if (!move || !lay.blocks.length) return;
    event.preventDefault();
    const next = cursor ? move(cursor) : [0, 0];
    if (lay.blocks[next[0]]) cursor = next;
    atCursor();
  });
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", () => ((tip.hidden = true), paint()));
  canvas.addEventListener("pointermove", (event) => {
    const found = under(event);
    canvas.style.cursor = found ? "pointer" : "default";
    tell(found, event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => {
    const found = under(event);
    if (found) on.open(lay.blocks[found[0]].node.name, found[1]);
  });
  el.addEventListener("scroll", paint);
  const resized = new ResizeObserver(layout);
  resized.observe(el);
  const night = matchMedia("(prefers-color-scheme: dark)");
  night.addEventListener("change", paint);
  const leave = () => {
    tip.hidden = true;
    resized.disconnect();
    night.removeEventListener("change", paint);
  };
  return { el, show, layout, paint, leave };
}

/** What colours and shapes mean. */
export const legend = (used = "used") =>
  h("p", { class: "legend" }, Object.values(WORDS).map((word) => h("span", {}, h("i", { class: `b-${word}` }), word === "used" ? used : word)));
