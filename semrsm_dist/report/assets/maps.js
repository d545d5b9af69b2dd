// The three heat maps of a layer in one order, and what is known of the cell below the pointer or the cross.

import { ByRank, ByValue, labelColour, limits, sortedFinite } from "./colours.js";
import { bound, choices, count, el, similarity } from "./dom.js";
import { Heatmap, LabelBar, UNDEFINED, View } from "./heatmap.js";

const KINDS = [["spatial", "spatio-semantic"], ["semantic", "semantic"], ["difference", "difference"]];
const ORDER_NAMES = { given: "as given", label: "by label", cluster: "by similarity" };
const MEMBERS = 6;
const NAMED = 24; // labels whose colours are named

export class Maps {
  /** `pin(row, column, numbers)` is called with a pair of images that was chosen. */
  constructor(source, gallery, scale, root, pin) {
    Object.assign(this, { source, gallery, scale, root, pin });
    this.order = null;
    this.kernel = "cosine";
    this.isRanked = false;
    this.cell = null;
    this.pair = null;
  }

  async show(layer) {
    this.layer = layer;
    this.found = null;
    const orders = this.source.orders(layer);
    this.root.replaceChildren();
    if (!orders) {
      this.root.append(el("p", { className: "muted", textContent: "This run keeps neighbours of each image and no matrices, so there are no maps." }));
      return;
    }
    if (!orders.includes(this.order)) this.order = this.source.firstOrder(layer);
    this.#build(orders);
    await this.#load();
  }

  #build(orders) {
    const named = orders.map((order) => [order, ORDER_NAMES[order]]);
    const button = (text, label, onclick) => el("button", { type: "button", textContent: text, title: label, "aria-label": label, onclick });
    const rank = el("label", { className: "choice" }, el("input", { type: "checkbox", id: "rank", checked: this.isRanked, onchange: (event) => this.#rank(event.target.checked) }), " colour by rank");
    const kernels = this.source.kernels(this.layer);
    const kernel = kernels.length > 1 ? choices("Kernel", "kernel", kernels.map((name) => [name, name]), this.kernel, (name) => this.#change({ kernel: name })) : null;
    this.root.append(
      el(
        "div",
        { className: "controls" },
        choices("Order", "order", named, this.order, (order) => this.#change({ order })),
        kernel, rank,
        el("span", { className: "buttons" },
          button("+", "Zoom in", () => this.#zoom(2)),
          button("\u2212", "Zoom out", () => this.#zoom(0.5)),
          button("Reset", "Show the whole maps", () => this.#reset())),
      ),
    );
    this.maps = Object.fromEntries(KINDS.map(([kind]) => [kind, new Heatmap(el("canvas", { id: `map-${kind}`, tabIndex: 0, role: "application" }), kind, this.scale)]));
    this.bars = Object.fromEntries(KINDS.map(([kind]) => [kind, el("div", { className: "scale" })]));
    const figures = KINDS.map(([kind, name]) =>
      el("figure", {}, el("figcaption", {}, name, this.source.symmetric ? null : el("span", { className: "axes", textContent: " queries down, images across" })), this.maps[kind].canvas, this.bars[kind]));
    this.news = el("p", { id: "maps-news", className: "note", role: "status", hidden: true });
    this.root.append(this.news, el("div", { className: "maps" }, ...figures));
    this.root.append(this.#legend());
    this.card = el("div", { id: "card", className: "card" });
    this.status = el("p", { id: "card-text", className: "visually-hidden", "aria-live": "polite" });
    this.root.append(
      el("p", { className: "muted", textContent: this.source.mapsNote(this.layer) }),
      el("p", { className: "muted hint", textContent: "Move over a map to compare a pair, click or press Enter to pin it. Drag to move; double click, pinch, Ctrl and wheel, or + and \u2212 to zoom; arrow keys move the cross." }),
      this.card, this.status);
    for (const map of Object.values(this.maps)) this.#listen(map);
    this.resizing?.disconnect();
    this.resizing = new ResizeObserver(() => this.#resize());
    this.resizing.observe(this.root);
  }

  /** Return what the colours of the label bars mean, if there are few. */
  #legend() {
    const names = this.gallery.vocabulary;
    if (!names.length || names.length > NAMED) return "";
    return el("p", { className: "key labels" }, "Labels ", ...names.map((name, at) => el("span", {}, swatch(labelColour(at, names.length)), name)));
  }

  async #load() {
    const wanted = (this.wanted = {}); // this time, and no longer what was wanted before
    const report = (share) => this.wanted === wanted && this.#tell(`The images are being sorted: ${percentage(share)} done.`);
    const found = await this.source.maps(this.layer, this.kernel, this.order, report);
    if (this.wanted !== wanted) return; // something else has been chosen meanwhile
    this.#tell("");
    this.found = found;
    const { pyramid } = found;
    pyramid.listener = () => this.found === found && this.#arrive();
    this.view = new View(...pyramid.size);
    this.cell = null;
    this.coloured = null;
    const nLabels = this.gallery.vocabulary.length;
    const bar = (axis, side) => (nLabels ? new LabelBar(pyramid, axis, (image) => this.gallery.labels(side, image), nLabels, this.gallery.isMultilabel) : null);
    const rows = bar(0, this.source.rowSide);
    const columns = this.source.symmetric ? rows : bar(1, "images");
    for (const map of Object.values(this.maps)) {
      map.setPyramid(pyramid);
      map.setBars(rows, columns);
    }
    this.#markPair();
    this.#describe();
    this.#resize();
    await new Promise((resolve) => (this.drawn = resolve));
  }

  #resize() {
    if (!this.found) return;
    for (const map of Object.values(this.maps)) map.resize();
    this.#draw();
  }

  /** Show what has been loaded. */
  #arrive() {
    this.#drawSoon(() => {
      if (this.cell && JSON.stringify(this.#numbers(this.cell)) !== this.described) this.#describe();
      this.drawn();
    });
  }

  /** Draw once in the next frame, however often that is wanted until then. */
  #drawSoon(after = () => {}) {
    this.due = [...(this.due ?? []), after];
    if (this.due.length > 1) return;
    requestAnimationFrame(() => {
      const due = this.due;
      this.due = null;
      if (!this.found) return;
      this.#draw();
      for (const each of due) each();
    });
  }

  #tell(text) {
    this.news.hidden = !text;
    this.news.textContent = text;
  }

  /** Scale the colours by the level that is shown, unless they fit well enough. */
  #colour(level) {
    const { pyramid } = this.found;
    const known = level === this.coloured?.level ? this.coloured : null;
    if (known?.version === pyramid.version) return;
    const values = Object.fromEntries(KINDS.map(([kind]) => [kind, pyramid.sample(level, kind)]));
    if (!values.semantic.length) return;
    const similarities = sortedFinite(values.spatial, values.semantic);
    const size = Math.max(Math.abs(similarities[0] ?? 0), Math.abs(similarities.at(-1) ?? 0)) || 1;
    const shared = limits(similarities, size);
    const ends = { spatial: shared, semantic: shared, difference: limits(sortedFinite(values.difference), size) };
    if (known && !this.isRanked && KINDS.every(([kind]) => isAlike(known.ends[kind], ends[kind]))) return;
    this.coloured = { level, ends, version: pyramid.version };
    for (const [kind, name] of KINDS) {
      const [low, high] = ends[kind];
      this.maps[kind].setColouring(this.isRanked ? new ByRank(sortedFinite(values[kind])) : new ByValue(low, high));
      const texts = this.isRanked ? ["lowest", "highest"] : [low, high].map((end) => similarity(end, this.kernel, 3));
      this.bars[kind].replaceChildren(el("span", { textContent: texts[0] }), el("span", { className: "gradient" }), el("span", { textContent: texts[1] }));
      if (!values[kind].every(Number.isFinite)) this.bars[kind].append(swatch(UNDEFINED), "undefined");
      const size = `${pyramid.cells(level).join(" by ")} cells`;
      this.maps[kind].canvas.setAttribute("aria-label", `Heat map, ${name}, ${size}, ${ORDER_NAMES[this.order]}. Arrow keys move the cross, Enter pins the pair.`);
    }
  }

  #draw() {
    if (!this.found) return;
    const { pyramid } = this.found;
    const maps = Object.values(this.maps);
    const level = this.maps.semantic.levelFor(this.view);
    const visible = pyramid.within(level, this.view.origin, this.view.shown);
    if (!pyramid.peek(pyramid.top, 0, 0)) pyramid.want(pyramid.top, 0, 0); // soon there, and shown below all others
    for (const place of visible) pyramid.want(level, ...place);
    this.#colour(visible.some((place) => pyramid.peek(level, ...place)) ? level : pyramid.top);
    const shares = visible.map((place) => pyramid.peek(level, ...place)?.share ?? 0);
    const share = shares.reduce((total, one) => total + one, 0) / shares.length;
    this.#tell(pyramid.problem || (share < 1 && this.coloured ? `The maps are being read: what is shown is of ${percentage(share)} of the pairs so far.` : ""));
    if (!this.coloured) return;
    for (const map of maps) {
      map.cross = this.cell && this.#extent(this.cell);
      map.pinned = this.pinnedPlace && { start: this.pinnedPlace, lengths: [1, 1] };
      map.draw(this.view);
      map.canvas.style.touchAction = this.view.zoom > 1 ? "none" : "pan-y"; // else one finger scrolls the page
    }
  }

  /** Return where a cell begins and its lengths, in cells of level 0. */
  #extent({ level, place }) {
    const spans = this.found.pyramid.shifts(level).map((shift) => 2 ** shift);
    return { start: place.map((at, axis) => at * spans[axis]), lengths: spans };
  }

  async #change(settings) {
    Object.assign(this, settings);
    await this.#load();
  }

  #rank(isRanked) {
    this.isRanked = isRanked;
    this.coloured = null;
    this.#draw();
  }

  #reset() {
    if (!this.found) return;
    this.view.reset();
    this.#draw();
  }

  /** Zoom around a place, by default the middle of what is shown. */
  #zoom(factor, place = null) {
    if (!this.found) return;
    this.view.scale(factor, place ?? this.#centre());
    this.#draw();
  }

  /** Return the middle of the cell in question, or of what is shown. */
  #centre() {
    const { start, lengths } = this.cell ? this.#extent(this.cell) : { start: this.view.origin, lengths: this.view.shown };
    return start.map((first, axis) => first + lengths[axis] / 2);
  }

  #listen(map) {
    const { canvas } = map;
    const pointers = new Map();
    let moved = 0;
    const cellAt = (place) => this.found && map.cellAt(...place, this.view);
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, at(event));
      moved = 0;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      const before = pointers.get(event.pointerId);
      if (!before) return this.#point(cellAt(now));
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      pointers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (!this.found || (moved <= 4 && !other)) return;
      const grip = (place) => (other ? place.map((length, axis) => (length + other[axis]) / 2) : place);
      if (other) {
        const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
        this.view.scale(distance(now) / Math.max(distance(before), 1), map.placeAt(...grip(before), this.view));
      }
      if (other || this.view.zoom > 1) { // what was gripped follows
        const [from, to] = [before, now].map((place) => map.placeAt(...grip(place), this.view));
        this.view.moveTo(this.view.origin.map((first, side) => first + from[side] - to[side]));
        this.#drawSoon();
      }
    });
    const end = (event) => {
      pointers.delete(event.pointerId);
      if (event.type === "pointerup" && moved <= 4) {
        this.#point(cellAt(at(event)));
        this.#pinCell();
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("dblclick", (event) => this.#zoom(2, map.placeAt(...at(event), this.view)));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return; // the page scrolls
      event.preventDefault();
      if (!this.found) return;
      const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 * event.deltaY : event.deltaY;
      this.view.scale(2 ** (-pixels / 300), map.placeAt(...at(event), this.view));
      this.#drawSoon();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!this.found) return;
    if (event.key in steps) {
      const { pyramid } = this.found;
      const level = this.maps.semantic.levelFor(this.view);
      const start = this.cell ? this.#extent(this.cell).start : this.view.origin;
      const stride = event.shiftKey ? 10 : 1;
      const place = pyramid.shifts(level).map((shift, axis) =>
        Math.min(Math.max(Math.floor(start[axis] / 2 ** shift) + stride * steps[event.key][axis], 0), pyramid.cells(level)[axis] - 1));
      const extent = this.#extent({ level, place });
      this.view.include(extent.start, extent.lengths);
      this.#point({ level, place });
    } else if (event.key === "Enter" || event.key === " ") this.#pinCell();
    else if (event.key === "+" || event.key === "=") this.#zoom(2);
    else if (event.key === "-") this.#zoom(0.5);
    else if (event.key === "0") this.#reset();
    else return;
    event.preventDefault();
  }

  #point(cell) {
    if (!cell || (this.cell?.level === cell.level && cell.place.every((at, axis) => at === this.cell.place[axis]))) return;
    this.cell = cell;
    this.#drawSoon();
    this.#describe();
  }

  /** Return the images of the rows and of the columns of a cell. */
  #members({ level, place }) {
    return place.map((at, axis) => this.found.pyramid.members(axis, level, at));
  }

  #numbers({ level, place }) {
    return this.found.pyramid.at(level, ...place);
  }

  #describe() {
    if (!this.cell) {
      this.card.replaceChildren(el("p", { className: "muted", textContent: "No pair chosen yet." }));
      return;
    }
    const [rows, columns] = this.#members(this.cell);
    const numbers = this.#numbers(this.cell) ?? {};
    this.described = JSON.stringify(numbers);
    const isPair = rows.length === 1 && columns.length === 1;
    const { rowSide } = this.source;
    const group = (side, images) => el("div", { className: "members" },
      ...Array.from(images.subarray(0, MEMBERS), (image) => this.gallery.thumbnail(side, image)),
      el("p", {}, el("strong", { textContent: images.length === 1 ? this.gallery.id(side, images[0]) : count(images.length, "image") }),
        el("span", { className: "muted", textContent: images.length === 1 ? this.gallery.labelText(side, images[0]) : images.length > MEMBERS ? `${MEMBERS} shown` : "" })));
    const text = (format, number) => (number === undefined ? "\u2026" : format(number)); // it is being loaded
    const value = (number) => similarity(number, this.kernel);
    const facts = [
      ["spatio-semantic", text(value, numbers.spatial)],
      ["semantic", text(value, numbers.semantic)],
      ["difference", text(value, numbers.difference)],
      [isPair ? this.source.gapName : `largest ${this.source.gapName}`, text(bound, numbers.gap)],
    ];
    const list = el("dl", { id: "numbers" }, ...facts.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
    const nPairs = count(rows.length * columns.length, "pair");
    const mean = numbers.share < 1 ? `mean of those of ${nPairs} that have been read` : `mean of ${nPairs}`;
    const heading = el("p", { className: "muted", textContent: [this.kernel, ...(isPair ? [] : [mean])].join(", ") });
    this.card.replaceChildren(group(rowSide, rows), group("images", columns), el("div", {}, heading, list));
    const names = isPair ? `${this.gallery.id(rowSide, rows[0])} and ${this.gallery.id("images", columns[0])}` : `${rows.length} and ${columns.length} images`;
    this.status.textContent = `${names}: ${facts.map((fact) => fact.join(" ")).join(", ")}`;
  }

  #pinCell() {
    if (!this.cell || !this.found) return;
    const [rows, columns] = this.#members(this.cell);
    if (rows.length === 1 && columns.length === 1) {
      this.pin(rows[0], columns[0], this.kernel === "cosine" ? this.#numbers(this.cell) : null);
      this.card.querySelector(".inside")?.remove();
      this.card.append(el("p", { className: "inside" }, el("a", { href: "#pair", textContent: "Pinned: see it patch by patch" })));
      return;
    }
    const inside = this.source.matchedPairs(this.layer).filter(([row, column]) =>
      (rows.includes(row) && columns.includes(column)) || (this.source.symmetric && rows.includes(column) && columns.includes(row)));
    const buttons = inside.slice(0, 12).map(([row, column]) => el("button", { type: "button", onclick: () => this.pin(row, column, null), textContent: `${this.gallery.id(this.source.rowSide, row)} and ${this.gallery.id("images", column)}` }));
    this.card.querySelector(".inside")?.remove();
    this.card.append(el("div", { className: "inside" }, el("p", { className: "muted", textContent: inside.length ? "Pairs of this cell with matched patches:" : this.source.insideNote }), ...buttons));
  }

  /** Mark a pair on the maps. */
  mark(row, column) {
    this.pair = [row, column];
    if (!this.found) return;
    this.#markPair();
    this.#draw();
  }

  #markPair() {
    const place = this.pair?.map((image, axis) => this.found.placeOf(axis, image));
    this.pinnedPlace = place && !place.includes(-1) ? place : null;
  }
}

/** Return a small area of a colour. */
function swatch(colour) {
  const area = el("i", { className: "swatch" });
  area.style.background = colour;
  return area;
}

function percentage(share) {
  return `${Math.floor(100 * share)} %`;
}

/** Return whether two ranges are nearly the same. */
function isAlike([low, high], others) {
  return Math.max(Math.abs(low - others[0]), Math.abs(high - others[1])) < 0.05 * (high - low);
}
