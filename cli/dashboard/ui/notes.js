// What happens, as it happens.

import { fill, h, nothing } from "./dom.js";
import { stream } from "./net.js";
import { noteLine } from "./overview.js";

const KEPT = 1000;

export function notes({ query }) {
  let text = query.get("text") ?? "";
  let paused = false;
  let all = [];
  let frame;
  const list = h("ol", { class: "notes long" });
  const told = h("span", { class: "quiet" });
  const draw = () => {
    frame = undefined;
    if (paused) return void (told.textContent = "paused");
    told.textContent = "";
    const some = all.filter((note) => !text || note.text.includes(text) || note.kind === text);
    fill(list, some.length ? some.map(noteLine) : h("li", {}, nothing(all.length ? "No note says that." : "Nothing has happened yet.")));
  };
  const soon = () => (frame ??= requestAnimationFrame(draw));
  const find = h("input", { type: "search", value: text, placeholder: "words of a note, or its kind", "aria-label": "notes with these words", oninput: () => {
    text = find.value.trim();
    soon();
  } });
  const hold = h("button", { class: "chip", "aria-pressed": "false", onclick: () => {
    paused = !paused;
    hold.setAttribute("aria-pressed", String(paused));
    soon();
  } }, "pause");
  const el = h("div", { class: "page" }, h("h1", {}, "Notes"), h("div", { class: "tools" }, find, hold, told), h("section", { class: "card" }, list));
  draw();
  let seen = -1;
  const end = stream(`notes?recent=500`, {
    resumes: true,
    data: (note) => {
      if (note.seq <= seen) return;
      seen = note.seq;
      all = [note, ...all].slice(0, KEPT);
      soon();
    },
    end: ({ error }) => (told.textContent = error ?? ""),
  });
  return { el, leave: end };
}
