// A search box with a list of options, after the ARIA combobox pattern: arrows move, Enter takes,
// Escape closes. `search(text, signal)` gives [{ value, label, hint }]; `choose(option)` takes one.
import { el } from "./dom.js";

export function combo(input, list, search, choose) {
  let options = [];
  let active = -1;
  let pending = new AbortController();
  let timer;

  function close() {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(at) {
    active = at;
    [...list.children].forEach((row, n) => row.setAttribute("aria-selected", String(n === at)));
    const row = list.children[at];
    if (!row) return;
    input.setAttribute("aria-activedescendant", row.id);
    row.scrollIntoView({ block: "nearest" });
  }

  function take(option) {
    input.value = option.label;
    close();
    choose(option);
  }

  async function open() {
    pending.abort();
    pending = new AbortController();
    try {
      options = await search(input.value.trim(), pending.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      options = [];
    }
    list.replaceChildren(
      ...options.map((option, n) =>
        el("li", { id: `${list.id}-${n}`, role: "option", "aria-selected": "false",
                   onpointerdown: (event) => { event.preventDefault(); take(option); } },
          el("span", {}, option.label), el("span", { class: "quiet" }, option.hint))),
    );
    list.hidden = !options.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    active = -1;
  }

  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(open, 120); });
  input.addEventListener("focus", open);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && list.hidden) open();
    else if (step) mark((active + step + options.length) % options.length);
    else if (event.key === "Escape") close();
    else if (event.key === "Enter" && active >= 0) take(options[active]);
    else return;
    event.preventDefault();
  });
}
