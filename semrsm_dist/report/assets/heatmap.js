// One heat map on a canvas: tiles of cells, label bars at its edges, a cross at the cell in question.

import { labelColour, pixelsOf } from "./colours.js";

const GAP = 3;
export const UNDEFINED = "#8a8f94"; // a colour that is not on the scale

/** What part of the maps is shown, in cells of level 0: all maps share one, so that they move together. */
export class View {
  constructor(height, width) {
    this.size = [height, width];
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.origin = [0, 0]; // first row and column shown, with fractions
  }

  /** Enlarge by a factor around a place, given in cells. */
  scale(factor, [row, column]) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), Math.max(1, Math.max(...this.size) / 4));
    const applied = zoom / this.zoom;
    this.zoom = zoom;
    this.moveTo([row, column].map((place, side) => place - (place - this.origin[side]) / applied));
  }

  moveTo(origin) {
    this.origin = origin.map((place, side) => Math.min(Math.max(place, 0), this.size[side] * (1 - 1 / this.zoom)));
  }

  /** How many rows and columns are shown. */
  get shown() {
    return this.size.map((size) => size / this.zoom);
  }

  /** Move so that a part is inside: where it begins, and its lengths. */
  include(start, lengths) {
    const { shown } = this;
    this.moveTo(this.origin.map((first, side) => Math.min(Math.max(first, start[side] + lengths[side] - shown[side]), start[side])));
  }
}

export class Heatmap {
  /** `kind` is the plane of the tiles that is shown; `scale` are the colours, three bytes each. */
  constructor(canvas, kind, scale) {
    Object.assign(this, { canvas, kind, palette: pixelsOf(scale), image: null, width: 0, height: 0 });
    this.bars = { rows: null, columns: null };
    this.cross = null; // as where it begins and its lengths
    this.pinned = null;
  }

  setPyramid(pyramid) {
    this.pyramid = pyramid;
  }

  /** Set the colours, a `ByValue` or `ByRank`. */
  setColouring(colouring) {
    this.colouring = colouring;
  }

  /** Set the bars of rows and columns, or null. */
  setBars(rows, columns) {
    this.bars = { rows, columns };
  }

  /** Return the level that is shown. */
  levelFor(view) {
    const density = window.devicePixelRatio || 1;
    const box = this.#box();
    return this.pyramid.levelFor([box.height, box.width].map((length, axis) => (density * length) / view.shown[axis]));
  }

  /** Return the cell at a place on the canvas, in CSS pixels, as `{level, place}`, or null. */
  cellAt(x, y, view) {
    const box = this.#box();
    const inside = x >= box.x && y >= box.y && x < box.x + box.width && y < box.y + box.height;
    const at = this.placeAt(x, y, view);
    if (!inside || !at.every((place, axis) => place >= 0 && place < this.pyramid.size[axis])) return null;
    const level = this.levelFor(view);
    return { level, place: this.pyramid.shifts(level).map((shift, axis) => Math.floor(at[axis] / 2 ** shift)) };
  }

  /** Return the row and column, with fractions, of a place on the canvas. */
  placeAt(x, y, view) {
    const box = this.#box();
    return [
      view.origin[0] + ((y - box.y) / box.height) * view.shown[0],
      view.origin[1] + ((x - box.x) / box.width) * view.shown[1],
    ];
  }

  /** Return the thickness of one label's stripe. */
  #stripe() {
    const bar = this.bars.rows ?? this.bars.columns;
    if (!bar) return 0;
    return bar.stripes === 1 ? 8 : Math.min(4, Math.max(1.5, (0.1 * this.width) / bar.stripes));
  }

  /** Return where the cells are, in CSS pixels. */
  #box() {
    const { width, height } = this;
    const thickness = (bar) => (bar ? bar.stripes * this.#stripe() + GAP : 0);
    const [x, y] = [thickness(this.bars.rows), thickness(this.bars.columns)];
    return { x, y, width: Math.max(1, width - x), height: Math.max(1, height - y) };
  }

  /** Take the width that the page gives, and the height at which cells are square; long maps are compressed. */
  resize() {
    this.width = this.canvas.getBoundingClientRect().width;
    const { x, y } = this.#box();
    const ratio = Math.min(2, Math.max(0.2, this.pyramid.size[0] / this.pyramid.size[1]));
    this.height = (this.width - x) * ratio + y;
    this.canvas.style.height = `${this.height}px`;
  }

  draw(view) {
    const { width, height } = this;
    const density = window.devicePixelRatio || 1;
    const size = [width, height].map((length) => Math.max(1, Math.round(length * density)));
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, ...size);
    const box = this.#box();
    const pixels = [box.height / view.shown[0], box.width / view.shown[1]];
    context.save();
    context.beginPath();
    context.rect(...[box.x, box.y, box.width, box.height].map((length) => length * density));
    context.clip();
    context.fillStyle = UNDEFINED;
    context.fillRect(0, 0, ...size);
    this.#drawTiles(context, view, [box.y, box.x], pixels, density);
    context.restore();
    context.save();
    context.scale(density, density);
    this.#drawBars(context, view, box, pixels);
    context.beginPath();
    context.rect(box.x, box.y, box.width, box.height);
    context.clip();
    for (const [part, colour] of [[this.cross, "#fff"], [this.pinned, "#ff3d7f"]]) {
      if (!part) continue;
      const [y, x] = part.start.map((start, axis) => [box.y, box.x][axis] + (start - view.origin[axis]) * pixels[axis]);
      const [tall, wide] = part.lengths.map((length, axis) => length * pixels[axis]);
      const side = [Math.max(wide, 5), Math.max(tall, 5)];
      context.strokeStyle = "rgb(0 0 0 / .55)";
      context.lineWidth = 3;
      for (let pass = 0; pass < 2; pass++) {
        context.strokeRect(x + (wide - side[0]) / 2, y + (tall - side[1]) / 2, ...side);
        context.strokeStyle = colour;
        context.lineWidth = 1.5;
      }
    }
    context.restore();
  }

  /** Draw the tiles of the level that can be seen, and below those that are not complete the ones of coarser levels. */
  #drawTiles(context, view, corner, pixels, density) {
    const { pyramid } = this;
    const finest = this.levelFor(view);
    const isThere = ([row, column]) => pyramid.peek(finest, row, column)?.share === 1;
    const isComplete = pyramid.within(finest, view.origin, view.shown).every(isThere);
    for (let level = isComplete ? finest : pyramid.top; level >= finest; level--) {
      const spans = pyramid.shifts(level).map((shift) => 2 ** shift);
      for (const place of pyramid.within(level, view.origin, view.shown)) {
        const tile = pyramid.peek(level, ...place);
        if (!tile) continue;
        // Edges are whole pixels, so that neighbours leave no line between them; the last cell may hang over the edge.
        const [y, x] = place.map((at, axis) => {
          const edge = (cells) => Math.round(density * (corner[axis] + ((at * pyramid.tile + cells) * spans[axis] - view.origin[axis]) * pixels[axis]));
          return [edge(0), edge([tile.height, tile.width][axis])];
        });
        const target = [x[0], y[0], x[1] - x[0], y[1] - y[0]];
        if (tile.share === 1) context.fillRect(...target); // cells that are undefined, and not those of coarser levels
        context.imageSmoothingEnabled = target[2] < tile.width || target[3] < tile.height;
        context.imageSmoothingQuality = "high";
        context.drawImage(this.#paint(tile), ...target);
      }
    }
  }

  /** Return a canvas with a pixel for each cell of a tile; undefined ones are transparent. */
  #paint(tile) {
    const { kind, colouring } = this;
    const painted = (tile.painted[kind] ??= { colouring: null, canvas: makeCanvas(tile.height, tile.width) });
    if (painted.colouring === colouring) return painted.canvas;
    if (this.image?.width !== tile.width || this.image.height !== tile.height) this.image = new ImageData(tile.width, tile.height);
    colouring.paint(tile[kind], this.palette, new Uint32Array(this.image.data.buffer));
    painted.canvas.getContext("2d").putImageData(this.image, 0, 0);
    painted.colouring = colouring;
    return painted.canvas;
  }

  #drawBars(context, view, box, pixels) {
    const level = this.levelFor(view);
    const shifts = this.pyramid.shifts(level);
    context.imageSmoothingEnabled = false;
    [this.bars.rows, this.bars.columns].forEach((bar, axis) => {
      if (!bar) return;
      const [start, length] = axis ? [box.x, box.width] : [box.y, box.height];
      context.save();
      if (!axis) context.transform(0, 1, 1, 0, 0, 0); // the bar of the rows is drawn as one of columns, mirrored at the diagonal
      context.beginPath();
      context.rect(start, 0, length, bar.stripes * this.#stripe());
      context.clip();
      const cell = pixels[axis] * 2 ** shifts[axis];
      for (const at of bar.within(level, view.origin[axis], view.shown[axis])) {
        const part = bar.part(level, at);
        const from = start + at * this.pyramid.tile * cell - view.origin[axis] * pixels[axis];
        context.drawImage(part, from, 0, part.width * cell, bar.stripes * this.#stripe());
      }
      context.restore();
    });
  }
}

/** Return a canvas with a pixel for each cell. */
function makeCanvas(height, width) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

/**
 * The labels at an edge of the maps: a pixel for each cell and, if images have several of few labels, one across it for
 * each of these; otherwise one in the colour of the most frequent label. It is made in parts as long as a tile.
 */
export class LabelBar {
  /** `labelsOf(image)` returns the labels of an image of the axis, rows (0) or columns (1). */
  constructor(pyramid, axis, labelsOf, nLabels, isMultilabel) {
    Object.assign(this, { pyramid, axis, labelsOf, nLabels });
    this.stripes = isMultilabel && nLabels <= 12 ? nLabels : 1;
    this.parts = new Map();
  }

  /** Return the parts of a level from a place on, over a length, both in cells of level 0. */
  within(level, origin, shown) {
    const span = this.pyramid.tile * 2 ** this.pyramid.shifts(level)[this.axis];
    const last = Math.min((origin + shown) / span, this.pyramid.cells(level)[this.axis] / this.pyramid.tile);
    const first = Math.floor(origin / span);
    return Array.from({ length: Math.max(0, Math.ceil(last) - first) }, (_, at) => first + at);
  }

  part(level, at) {
    const name = `${level}/${at}`;
    if (!this.parts.has(name)) this.parts.set(name, this.#draw(level, at * this.pyramid.tile));
    return this.parts.get(name);
  }

  #draw(level, start) {
    const { pyramid, axis, nLabels, stripes } = this;
    const width = Math.min(pyramid.tile, pyramid.cells(level)[axis] - start);
    const canvas = makeCanvas(stripes, width);
    const context = canvas.getContext("2d");
    for (let cell = 0; cell < width; cell++) {
      const images = pyramid.members(axis, level, start + cell);
      const counts = new Map();
      for (const image of images) for (const label of this.labelsOf(image)) counts.set(label, (counts.get(label) ?? 0) + 1);
      const shown = stripes > 1 ? [...counts] : [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 1);
      for (const [label, number] of shown) {
        context.globalAlpha = stripes > 1 ? number / images.length : 1;
        context.fillStyle = labelColour(label, nLabels);
        context.fillRect(cell, stripes > 1 ? label : 0, 1, 1);
      }
    }
    return canvas;
  }
}
