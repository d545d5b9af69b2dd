// The three heat maps of a layer in one order, and what is known of the cell below the pointer or the cross.

import { limits, ranker } from "./colours.js";
import { bound, choices, count, el, similarity } from "./dom.js";
import { Heatmap, View, labelBar } from "./heatmap.js";

const KINDS = [["spatial", "spatio-semantic"], ["semantic", "semantic"], ["difference", "difference"]];
const ORDER_NAMES = { given: "as given", label: "by label", cluster: "by similarity" };
const MEMBERS = 6;

export class Maps {
  /** `pin(row, column, numbers)` is called with a pair of images that was chosen. */
  constructor(source, gallery, scale, root, pin) {
    Object.assign(this, { source, gallery, scale, root, pin });
    this.order = null;
    this.isRanked = false;
    this.cell = null;
    this.pair = null;
  }

  async show(layer) {
    this.layer = layer;
    const orders = this.source.orders(layer);
    this.root.replaceChildren();
    if (!orders) {
      this.root.append(el("p", { className: "muted", textContent: "This run keeps neighbours of each image and no matrices, so there are no maps." }));
      return;
    }
    if (!orders.includes(this.order)) this.order = orders.includes("label") ? "label" : "cluster";
    this.#build(orders);
    await this.#load();
  }

  #build(orders) {
    const named = orders.map((order) => [order, ORDER_NAMES[order]]);
    const button = (text, label, onclick) => el("button", { type: "button", textContent: text, title: label, "aria-label": label, onclick });
    const rank = el("label", { className: "choice" }, el("input", { type: "checkbox", id: "rank", checked: this.isRanked, onchange: (event) => this.#rank(event.target.checked) }), " colour by rank");
    const centre = () => this.cell ?? this.view.size.map((size, side) => this.view.origin[side] + size / this.view.zoom / 2);
    this.root.append(
      el(
        "div",
        { className: "controls" },
        choices("Order", "order", named, this.order, (order) => this.#sort(order)),
        rank,
        el("span", { className: "buttons" },
          button("+", "Zoom in", () => this.#zoom(2, centre())),
          button("\u2212", "Zoom out", () => this.#zoom(0.5, centre())),
          button("Reset", "Show the whole maps", () => this.#reset())),
      ),
    );
    this.maps = Object.fromEntries(KINDS.map(([kind]) => [kind, new Heatmap(el("canvas", { id: `map-${kind}`, tabIndex: 0, role: "application" }))]));
    this.bars = Object.fromEntries(KINDS.map(([kind]) => [kind, el("div", { className: "scale" })]));
    const figures = KINDS.map(([kind, name]) =>
      el("figure", {}, el("figcaption", {}, name, this.source.symmetric ? null : el("span", { className: "axes", textContent: " queries down, images across" })), this.maps[kind].canvas, this.bars[kind]));
    this.root.append(el("div", { className: "maps" }, ...figures));
    this.card = el("div", { id: "card", className: "card" });
    this.status = el("p", { id: "card-text", className: "visually-hidden", "aria-live": "polite" });
    this.legend = el("div", { className: "legend" });
    this.root.append(
      el("p", { className: "muted", textContent: `${this.source.mapsNote(this.layer)} Move over a map to compare a pair, click or press Enter to pin it. Drag to move; double click, pinch, or + and \u2212 to zoom; arrow keys move the cross.`.trim() }),
      this.card, this.status, this.legend);
    for (const map of Object.values(this.maps)) this.#listen(map);
    this.resizing?.disconnect();
    this.resizing = new ResizeObserver(() => this.#draw());
    this.resizing.observe(this.root);
  }

  async #load() {
    const found = await this.source.maps(this.layer, this.order);
    this.found = found;
    this.view = new View(found.height, found.width);
    this.cell = null;
    const { rowSide } = this.source;
    const groups = (side, images, edges) => Array.from({ length: edges.length - 1 }, (_, cell) =>
      Array.from(images.subarray(edges[cell], edges[cell + 1]), (image) => this.gallery.labels(side, image)));
    const nLabels = this.gallery.vocabulary.length;
    const bar = (side, images, edges) => (nLabels ? labelBar(groups(side, images, edges), nLabels, this.gallery.isMultilabel) : null);
    const rowBar = bar(rowSide, found.rows, found.rowEdges);
    const columnBar = this.source.symmetric ? rowBar : bar("images", found.columns, found.columnEdges);
    for (const map of Object.values(this.maps)) map.setBars(rowBar, columnBar);
    this.#markPair();
    this.#colour();
    this.#describe();
  }

  #colour() {
    const { found } = this;
    const shared = limits(found.spatial, found.semantic);
    for (const [kind, name] of KINDS) {
      const values = found[kind];
      const [low, high] = kind === "difference" ? limits(values) : shared;
      const level = this.isRanked ? ranker(values) : (value) => (value - low) / (high - low);
      const colours = new Uint8ClampedArray(4 * values.length);
      values.forEach((value, at) => {
        if (!Number.isFinite(value)) return; // transparent
        const place = 3 * Math.round(255 * Math.min(Math.max(level(value), 0), 1));
        colours.set(this.scale.subarray(place, place + 3), 4 * at);
        colours[4 * at + 3] = 255;
      });
      this.maps[kind].setCells(found.height, found.width, colours);
      const ends = this.isRanked ? ["lowest", "highest"] : [low.toFixed(3), high.toFixed(3)];
      this.bars[kind].replaceChildren(el("span", { textContent: ends[0] }), el("span", { className: "gradient" }), el("span", { textContent: ends[1] }));
      const size = `${found.height} by ${found.width} cells`;
      this.maps[kind].canvas.setAttribute("aria-label", `Heat map, ${name}, ${size}, ${ORDER_NAMES[this.order]}. Arrow keys move the cross, Enter pins the pair.`);
    }
    this.#draw();
  }

  #draw() {
    if (!this.found) return;
    for (const map of Object.values(this.maps)) {
      map.canvas.style.height = `${map.heightFor(map.canvas.getBoundingClientRect().width)}px`;
      map.cross = this.cell;
      map.pinned = this.pinnedCell;
      map.draw(this.view);
    }
  }

  async #sort(order) {
    this.order = order;
    await this.#load();
  }

  #rank(isRanked) {
    this.isRanked = isRanked;
    this.#colour();
  }

  #reset() {
    this.view.reset();
    this.#draw();
  }

  #zoom(factor, place) {
    this.view.scale(factor, place);
    this.#draw();
  }

  #listen(map) {
    const { canvas } = map;
    const pointers = new Map();
    let moved = 0;
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
      if (!before) return this.#point(map.cellAt(...now, this.view));
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      pointers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (other) {
        const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
        this.#zoom(distance(now) / Math.max(distance(before), 1), map.placeAt(...now, this.view));
      } else if (moved > 4 && this.view.zoom > 1) {
        const [from, to] = [map.placeAt(...before, this.view), map.placeAt(...now, this.view)];
        this.view.moveTo(this.view.origin.map((first, side) => first + from[side] - to[side]));
        this.#draw();
      }
    });
    const end = (event) => {
      pointers.delete(event.pointerId);
      if (event.type === "pointerup" && moved <= 4) {
        this.#point(map.cellAt(...at(event), this.view));
        this.#pinCell();
      }
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("dblclick", (event) => this.#zoom(2, map.placeAt(...at(event), this.view)));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return; // the page scrolls
      event.preventDefault();
      this.#zoom(2 ** (-event.deltaY / 300), map.placeAt(...at(event), this.view));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const { size } = this.view;
    if (event.key in steps) {
      const stride = event.shiftKey ? 10 : 1;
      const from = this.cell ?? this.view.origin.map(Math.floor);
      const cell = from.map((place, side) => Math.min(Math.max(place + stride * steps[event.key][side], 0), size[side] - 1));
      this.view.include(cell);
      this.#point(cell);
    } else if (event.key === "Enter" || event.key === " ") this.#pinCell();
    else if (event.key === "+" || event.key === "=") this.#zoom(2, this.cell ?? this.view.origin);
    else if (event.key === "-") this.#zoom(0.5, this.cell ?? this.view.origin);
    else if (event.key === "0") this.#reset();
    else return;
    event.preventDefault();
  }

  #point(cell) {
    if (!cell || (this.cell && cell.every((place, side) => place === this.cell[side]))) return;
    this.cell = cell;
    this.#draw();
    this.#describe();
  }

  /** Return the images of the rows and of the columns of a cell. */
  #members([row, column]) {
    const { rows, columns, rowEdges, columnEdges } = this.found;
    return [rows.subarray(rowEdges[row], rowEdges[row + 1]), columns.subarray(columnEdges[column], columnEdges[column + 1])];
  }

  #numbers([row, column]) {
    const at = row * this.found.width + column;
    return Object.fromEntries(["spatial", "semantic", "difference", "gap"].map((name) => [name, this.found[name][at]]));
  }

  #describe() {
    if (!this.cell) {
      this.card.replaceChildren(el("p", { className: "muted", textContent: "No pair chosen yet." }));
      return;
    }
    const [rows, columns] = this.#members(this.cell);
    const numbers = this.#numbers(this.cell);
    const isPair = rows.length === 1 && columns.length === 1;
    const { rowSide } = this.source;
    const group = (side, images) => el("div", { className: "members" },
      ...Array.from(images.subarray(0, MEMBERS), (image) => this.gallery.thumbnail(side, image)),
      el("p", {}, el("strong", { textContent: images.length === 1 ? this.gallery.id(side, images[0]) : count(images.length, "image") }),
        el("span", { className: "muted", textContent: images.length === 1 ? this.gallery.labelText(side, images[0]) : images.length > MEMBERS ? `${MEMBERS} shown` : "" })));
    const facts = [
      ["spatio-semantic", similarity(numbers.spatial)],
      ["semantic", similarity(numbers.semantic)],
      ["difference", similarity(numbers.difference)],
      [isPair ? this.source.gapName : `largest ${this.source.gapName}`, bound(numbers.gap)],
    ];
    const list = el("dl", { id: "numbers" }, ...facts.map(([name, value]) => el("div", {}, el("dt", { textContent: name }), el("dd", { textContent: value }))));
    const heading = isPair ? null : el("p", { className: "muted", textContent: `mean of ${count(rows.length * columns.length, "pair")}` });
    this.card.replaceChildren(group(rowSide, rows), group("images", columns), el("div", {}, heading, list));
    const names = isPair ? `${this.gallery.id(rowSide, rows[0])} and ${this.gallery.id("images", columns[0])}` : `${rows.length} and ${columns.length} images`;
    this.status.textContent = `${names}: ${facts.map((fact) => fact.join(" ")).join(", ")}`;
  }

  #pinCell() {
    if (!this.cell) return;
    const [rows, columns] = this.#members(this.cell);
    if (rows.length === 1 && columns.length === 1) {
      this.pin(rows[0], columns[0], this.#numbers(this.cell));
      this.card.querySelector(".inside")?.remove();
      this.card.append(el("p", { className: "inside" }, el("a", { href: "#pair", textContent: "Pinned: see it patch by patch" })));
      return;
    }
    const inside = this.source.matchedPairs(this.layer).filter(([row, column]) =>
      (rows.includes(row) && columns.includes(column)) || (this.source.symmetric && rows.includes(column) && columns.includes(row)));
    const buttons = inside.slice(0, 12).map(([row, column]) => el("button", { type: "button", onclick: () => this.pin(row, column, null), textContent: `${this.gallery.id(this.source.rowSide, row)} and ${this.gallery.id("images", column)}` }));
    this.card.querySelector(".inside")?.remove();
    this.card.append(el("div", { className: "inside" }, el("p", { className: "muted", textContent: inside.length ? "Pairs of this cell with matched patches:" : "No pair of this cell has its matched patches in this page." }), ...buttons));
  }

  /** Mark a pair on the maps. */
  mark(row, column) {
    this.pair = [row, column];
    if (!this.found) return;
    this.#markPair();
    this.#draw();
  }

  #markPair() {
    this.pinnedCell = null;
    if (!this.pair) return;
    const find = (images, edges, image) => {
      const place = images.indexOf(image);
      return place < 0 ? -1 : edges.findLastIndex((edge) => edge <= place);
    };
    const { rows, columns, rowEdges, columnEdges } = this.found;
    const cell = [find(rows, rowEdges, this.pair[0]), find(columns, columnEdges, this.pair[1])];
    if (!cell.includes(-1)) this.pinnedCell = cell;
  }
}
