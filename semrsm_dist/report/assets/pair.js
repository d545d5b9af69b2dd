// One pair of images: what matching pairs up, and position by position beside it.

import { patchColour } from "./colours.js";
import { bound, el, significant, similarity } from "./dom.js";

const LISTED = 8;
const COVERED = 0.8;
const BETWEEN = 36;
const DIGITS = 3; // of what a patch adds, which is stored with eight bits

export class Pair {
  constructor(source, gallery, section, root) {
    Object.assign(this, { source, gallery, section, root });
  }

  /** Show a pair; `numbers` are its similarities where they are known already. */
  async show(layer, row, column, numbers) {
    const { match, numbers: stored, note } = await this.source.pair(layer, row, column);
    const sides = [[this.source.rowSide, row], ["images", column]];
    const pictures = await Promise.all(sides.map(([side, image]) => this.gallery.large(side, image)));
    this.resizing?.disconnect(); // of the pair before, which may have had patches
    Object.assign(this, { layer, match, sides, pictures, chosen: 0 });
    this.section.hidden = false;
    const known = stored ?? numbers;
    const names = sides.map(([side, image]) => el("div", { className: "members" }, this.gallery.thumbnail(side, image),
      el("p", {}, el("strong", { textContent: this.gallery.id(side, image) }), el("span", { className: "muted", textContent: this.gallery.labelText(side, image) }))));
    const facts = known ? [["spatio-semantic", similarity(known.spatial)], ["semantic", similarity(known.semantic)], ["difference", similarity(known.semantic - known.spatial)], [this.source.gapName, bound(known.gap)]] : [];
    const list = el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
    this.root.replaceChildren(el("div", { className: "card" }, ...names, el("div", {}, el("p", { className: "muted", textContent: `${layer}, cosine` }), list)));
    if (match) this.#build();
    else this.root.append(el("p", { className: "note", textContent: note }));
  }

  #build() {
    const { match } = this;
    const [height, width] = match.grid;
    this.strongest = match.partners.map((_, token) => token).filter((token) => match.partners[token] >= 0)
      .sort((a, b) => match.matched[b] - match.matched[a] || a - b);
    const sum = this.strongest.reduce((total, token) => total + match.matched[token], 0);
    let [covered, needed] = [0, 0];
    for (const token of this.strongest) {
      if (covered >= COVERED * sum) break;
      covered += match.matched[token];
      needed++;
    }
    this.most = Math.max(...match.matched.filter(Number.isFinite), ...match.identity.filter(Number.isFinite), 1e-12);
    this.nShown = Math.min(this.strongest.length, Math.max(needed, 1));
    const all = this.strongest.length;
    const share = sum > 0 && needed < all ? `${Math.round(100 * COVERED)} % of the similarity after matching comes from ${needed} of ${all} patches; the rest are paired because each patch must have a partner.` : "";
    const slider = el("input", { type: "range", id: "strongest", min: 1, max: this.strongest.length, value: this.nShown, oninput: (event) => { this.nShown = Number(event.target.value); this.#draw(); } });
    this.sliderText = el("output", { htmlFor: "strongest" });
    const canvas = (name, text) => el("canvas", { id: name, tabIndex: 0, role: "application", "aria-label": text });
    this.canvases = {
      matched: canvas("patches-matched", "Matched patches of both images; arrow keys go through the matches, the strongest first"),
      identity: canvas("patches-identity", "The same images position by position"),
    };
    this.readout = el("p", { id: "patch", className: "readout", "aria-live": "polite" });
    const cells = this.strongest.slice(0, LISTED).map((token, at) => {
      const button = el("button", { type: "button", textContent: this.#words(token, match.partners[token]), onclick: () => this.#choose(at) });
      return el("tr", {}, el("td", { className: "number", textContent: at + 1 }), el("td", {}, button), el("td", { className: "number", textContent: significant(match.matched[token], DIGITS) }), el("td", { className: "number", textContent: percent(match.matched[token], sum) }));
    });
    const head = el("tr", {}, ...["", "patches", "adds", "share"].map((text) => el("th", { scope: "col", textContent: text })));
    this.table = el("table", { className: "matches" }, el("caption", { textContent: `Strongest matches; patches are counted from 1, row, column of ${height} x ${width}` }), el("thead", {}, head), el("tbody", {}, ...cells));
    const noIdentity = match.identity.every(Number.isNaN);
    this.root.append(
      el("p", {}, share),
      el("div", { className: "controls" }, el("label", { className: "choice" }, "Strongest ", slider, " ", this.sliderText)),
      el("div", { className: "patches" },
        el("figure", {}, el("figcaption", { textContent: `after matching, cosine: ${similarity(match.semantic)}` }), this.canvases.matched),
        noIdentity ? el("p", { className: "muted", textContent: "The images differ in their number of patches, so there is nothing to compare position by position." })
          : el("figure", {}, el("figcaption", { textContent: `position by position, cosine: ${similarity(match.spatial)}` }), this.canvases.identity)),
      this.readout,
      el("details", { open: true }, el("summary", { textContent: "The matches as a table" }), this.table));
    this.sum = sum;
    this.identitySum = match.identity.filter(Number.isFinite).reduce((total, value) => total + value, 0);
    for (const [kind, element] of Object.entries(this.canvases)) this.#listen(kind, element);
    this.resizing = new ResizeObserver(() => this.#draw());
    this.resizing.observe(this.root);
    this.#choose(0);
  }

  #words(token, partner) {
    const width = this.match.grid[1];
    const place = (index) => `${Math.floor(index / width) + 1}, ${(index % width) + 1}`;
    return `(${place(token)}) with (${place(partner)})`;
  }

  #choose(at) {
    this.chosen = Math.min(Math.max(at, 0), this.strongest.length - 1);
    this.token = this.strongest[this.chosen];
    this.#draw();
  }

  #listen(kind, canvas) {
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      this.#choose(this.chosen + step);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const token = this.#tokenAt(kind, event.clientX - box.left, event.clientY - box.top);
      if (token !== null && token !== this.token) this.#choose(this.strongest.indexOf(token));
    });
  }

  /** Return the token of the first image at a place, or the one whose partner is there in the second. */
  #tokenAt(kind, x, y) {
    const [height, width] = this.match.grid;
    for (const [side, box] of this.#boxes(this.canvases[kind]).entries()) {
      const [column, row] = [Math.floor(((x - box.x) / box.width) * width), Math.floor(((y - box.y) / box.height) * height)];
      if (row < 0 || column < 0 || row >= height || column >= width) continue;
      const index = row * width + column;
      const token = side === 0 ? index : kind === "identity" ? index : this.match.partners.indexOf(index);
      return this.match.partners[token] >= 0 ? token : null;
    }
    return null;
  }

  /** Return where both images lie on a canvas, in CSS pixels. */
  #boxes(canvas) {
    const side = (canvas.getBoundingClientRect().width - BETWEEN) / 2;
    const [height, width] = this.match.grid;
    return this.pictures.map((picture, at) => {
      const ratio = picture ? picture[4] / picture[3] : Math.min(1, Math.max(height / width, 0.15));
      const scale = Math.min(1, 1 / ratio);
      return { x: at * (side + BETWEEN), y: 0, width: side * scale, height: side * scale * ratio };
    });
  }

  #draw() {
    const { match } = this;
    const shown = new Set(this.strongest.slice(0, this.nShown));
    this.sliderText.textContent = `${this.nShown} of ${this.strongest.length}`;
    for (const [kind, canvas] of Object.entries(this.canvases)) {
      const boxes = this.#boxes(canvas);
      const width = canvas.getBoundingClientRect().width;
      if (!width) continue;
      const tall = Math.max(...boxes.map((box) => box.height));
      canvas.style.height = `${tall}px`;
      const density = window.devicePixelRatio || 1;
      Object.assign(canvas, { width: Math.round(width * density), height: Math.round(tall * density) });
      const context = canvas.getContext("2d");
      context.scale(density, density);
      boxes.forEach((box, side) => this.#drawImage(context, box, this.pictures[side]));
      const partner = (token) => (kind === "identity" ? token : match.partners[token]);
      for (const token of this.strongest) {
        const strength = Math.max(match[kind][token], 0) / this.most;
        if (!Number.isFinite(strength)) continue;
        const alpha = kind === "identity" || shown.has(token) ? 0.85 * Math.sqrt(strength) : 0;
        this.#fill(context, boxes[0], token, this.#colour(token, alpha));
        this.#fill(context, boxes[1], partner(token), this.#colour(token, alpha));
      }
      boxes.forEach((box) => this.#drawGrid(context, box));
      this.#drawChosen(context, boxes, this.token, partner(this.token));
    }
    const adds = match.matched[this.token];
    const own = match.identity[this.token];
    const beside = Number.isFinite(own) ? ` Position by position it adds ${significant(own, DIGITS)}.` : "";
    this.readout.textContent = `Match ${this.chosen + 1} of ${this.strongest.length}: patch ${this.#words(this.token, match.partners[this.token])} adds ${significant(adds, DIGITS)}, ${percent(adds, this.sum)} of the cosine similarity.${beside}`;
    this.table.querySelectorAll("tbody tr").forEach((line, at) => line.classList.toggle("chosen", at === this.chosen));
  }

  #colour(token, alpha) {
    const [height, width] = this.match.grid;
    const [row, column] = [Math.floor(token / width), token % width];
    return patchColour(width > 1 ? column / (width - 1) : 0.5, height > 1 ? row / (height - 1) : 0.5, alpha);
  }

  #place(box, index) {
    const [height, width] = this.match.grid;
    const [w, h] = [box.width / width, box.height / height];
    return [box.x + (index % width) * w, box.y + Math.floor(index / width) * h, w, h];
  }

  #fill(context, box, index, colour) {
    context.fillStyle = colour;
    context.fillRect(...this.#place(box, index));
  }

  #drawImage(context, box, picture) {
    context.fillStyle = "#808080";
    context.fillRect(box.x, box.y, box.width, box.height);
    if (!picture) return;
    const [image, x, y, width, height] = picture;
    context.imageSmoothingEnabled = true;
    context.drawImage(image, x, y, width, height, box.x, box.y, box.width, box.height);
  }

  #drawGrid(context, box) {
    const [height, width] = this.match.grid;
    if (box.width / width < 5) return; // lines would hide the image
    context.strokeStyle = "rgb(255 255 255 / .28)";
    context.lineWidth = 1;
    context.beginPath();
    for (let column = 0; column <= width; column++) {
      context.moveTo(box.x + (column * box.width) / width, box.y);
      context.lineTo(box.x + (column * box.width) / width, box.y + box.height);
    }
    for (let row = 0; row <= height; row++) {
      context.moveTo(box.x, box.y + (row * box.height) / height);
      context.lineTo(box.x + box.width, box.y + (row * box.height) / height);
    }
    context.stroke();
  }

  #drawChosen(context, boxes, token, partner) {
    const places = [this.#place(boxes[0], token), this.#place(boxes[1], partner)];
    const centres = places.map(([x, y, w, h]) => [x + w / 2, y + h / 2]);
    for (const [colour, line] of [["rgb(0 0 0 / .7)", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      for (const [x, y, w, h] of places) context.strokeRect(x, y, w, h);
      context.beginPath();
      context.moveTo(...centres[0]);
      context.lineTo(...centres[1]);
      context.stroke();
    }
  }
}

function percent(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)} %` : "";
}
