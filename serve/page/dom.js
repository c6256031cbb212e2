// Elements from plain values. Text is always text: nothing here parses HTML.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const percent = (share) => `${Math.round(100 * share)} %`;
export const number = (value) => value.toFixed(3).replace(/^(-?)0\./, "$1.");
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
