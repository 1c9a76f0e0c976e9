// Elements, and quantities in words. Data reaches the page as text alone: nothing here parses markup.

/** An element: `h("a", {href, class, onclick, title}, children…)`; children are elements, text, or nothing. */
export function h(tag, props = {}, ...children) {
  const it = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) it.addEventListener(name.slice(2), value);
    else if (name === "width%") it.style.width = `${value}%`;
    else if (name === "left%") it.style.left = `${value}%`;
    else if (name === "indent") it.style.paddingInlineStart = `${value}px`;
    else it.setAttribute(name, value === true ? "" : value);
  }
  it.append(...children.flat(3).filter((child) => child !== undefined && child !== null && child !== false));
  return it;
}

/** Puts children into the place of those that there are; who has the focus keeps it, and what was unfolded stays so. */
export function fill(parent, ...children) {
  const key = parent.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const unfolded = parent.querySelector("details[open]") !== null;
  parent.replaceChildren(...children.flat(3).filter((child) => child));
  if (unfolded) parent.querySelectorAll("details").forEach((it) => (it.open = true));
  if (key) parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** A text as a sentence. */
export const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}`;

const grouped = new Intl.NumberFormat("en");
export const count = (n) => grouped.format(n);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "");
/** Thousandths: 1500 is 1.5. */
export const milli = (n) => grouped.format(n / 1000);

export function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  const pad = (n) => String(n).padStart(2, "0");
  if (ms < 1000) return `${Math.round(Math.max(0, ms))} ms`;
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${pad(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${pad(Math.floor(s / 60) % 60)}m`;
  return `${Math.floor(s / 86400)}d ${pad(Math.floor(s / 3600) % 24)}h`;
}

export function hours(ms) {
  const h = ms / 3600000;
  return `${h >= 100 ? count(Math.round(h)) : h.toFixed(h >= 10 ? 1 : 2)} h`;
}

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) [bytes, at] = [bytes / 1024, at + 1];
  return `${bytes >= 100 || bytes === Math.floor(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${units[at]}`;
}

const relative = (ms) => {
  const past = Date.now() - ms;
  if (Math.abs(past) < 1500) return "now";
  return past < 0 ? `in ${duration(-past)}` : `${duration(past)} ago`;
};

/** A moment: how long ago, and on hover when; `words` makes other text of the milliseconds since. */
export function moment(ms, since = false) {
  if (!ms) return "";
  const it = h("time", { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString(), "data-ms": ms });
  if (since) it.dataset.since = "";
  tell(it);
  return it;
}

function tell(it) {
  const ms = Number(it.dataset.ms);
  it.textContent = it.dataset.since === undefined ? relative(ms) : duration(Date.now() - ms);
}

setInterval(() => {
  if (!document.hidden) document.querySelectorAll("time[data-ms]").forEach(tell);
}, 1000);

/** A state of a job or node, with its colour. */
export const badge = (state) => h("span", { class: `badge s-${state.replaceAll(/[^a-z-]/g, "-")}` }, state);

export const jobLink = (id, text = id) => h("a", { href: `#/jobs/${id}`, class: "mono", "data-key": `j${id}${text}` }, text);
export const nodeLink = (name) => h("a", { href: `#/nodes/${encodeURIComponent(name)}`, "data-key": `n${name}` }, name);

/** A card with a title. */
export const card = (title, ...children) => h("section", { class: "card" }, h("h2", {}, title), ...children);

/** What stands where there is nothing: a sentence, and a command that changes that. */
export const nothing = (sentence, command, after = "") =>
  h("p", { class: "nothing" }, sentence, command && " ", command && h("code", {}, command), after && ` ${after}`);

/** A table; `columns` are [title, class]. Cells that are arrays have several children. */
export function table(columns, rows, caption) {
  const head = columns.map(([title, kind]) => h("th", { class: kind, scope: "col" }, title));
  const body = rows.map((cells) => {
    const props = cells.props ?? {};
    return h("tr", props, cells.map((cell, at) => h("td", { class: columns[at][1] }, cell ?? "")));
  });
  return h("div", { class: "scroll" }, h("table", {}, caption && h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** A bar of parts: [class, amount, words]. Words are told on hover, and to those who do not see it. */
export function bar(parts, all, label) {
  const shown = parts.filter(([, amount]) => amount > 0);
  const words = shown.map(([, , words]) => words).join(", ");
  const part = ([kind, amount, title]) => h("span", { class: `b-${kind}`, "width%": (100 * amount) / all, title });
  return h("div", { class: "bar", role: "img", "aria-label": `${label}: ${words || "nothing"}` }, shown.map(part));
}

/** Shares of amounts in tenths of a percent that sum to exactly 100 %: the largest remainders are rounded up. */
export function shares(amounts) {
  const all = amounts.reduce((sum, it) => sum + it, 0);
  if (!all) return amounts.map(() => 0);
  const exact = amounts.map((it) => (1000 * it) / all);
  const down = exact.map(Math.floor);
  const order = exact.map((it, at) => [it - down[at], at]).sort((a, b) => b[0] - a[0]);
  const left = 1000 - down.reduce((sum, it) => sum + it, 0);
  for (const [, at] of order.slice(0, left)) down[at] += 1;
  return down.map((it) => it / 10);
}

/** Words and their values. */
export const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.filter(([, value]) => value && value.length !== 0)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
