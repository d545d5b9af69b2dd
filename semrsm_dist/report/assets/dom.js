// Elements, and numbers as text. Everything that comes from a run enters the page as text, never as markup.

/** Return a new element; properties that begin with `on` are listeners, `data-` and `aria-` ones attributes. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && !key.startsWith("aria")) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a labelled list of choices; `choose` is called with the chosen value. */
export function choices(label, id, values, chosen, choose) {
  const options = values.map(([value, text]) => el("option", { value, textContent: text, selected: value === chosen }));
  return el(
    "label",
    { className: "choice" },
    `${label} `,
    el("select", { id, onchange: (event) => choose(event.target.value) }, ...options),
  );
}

/** Return a similarity as text: of inner products, which may be of any size, five digits; of others, so many decimals. */
export function similarity(value, kernel = "cosine", decimals = 4) {
  if (!Number.isFinite(value)) return "undefined";
  return kernel === "linear" ? significant(value, 5) : value.toFixed(decimals);
}

/** Return a number as text with its first digits, however small or large it is. */
export function significant(value, digits) {
  if (value === 0) return "0";
  return Math.abs(value) < 1e-3 ? value.toExponential(digits - 1) : value.toPrecision(digits);
}

/** Return a small positive number as text, never smaller than it is. */
export function bound(value) {
  if (!Number.isFinite(value)) return "undefined";
  if (value === 0) return "0";
  const exponent = Math.floor(Math.log10(value));
  const digits = Math.ceil((value / 10 ** exponent) * 10 - 1e-9) / 10;
  return digits >= 10 ? `1.0e${exponent + 1}` : `${digits.toFixed(1)}e${exponent}`;
}

/** Return a count of things as text. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
