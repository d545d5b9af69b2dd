// One heat map on a canvas: cells, label bars at its edges, a cross at the cell in question. It knows no data.

import { labelColour } from "./colours.js";

const GAP = 3;

/** What part of the maps is shown: all maps share one, so that they move together. */
export class View {
  constructor(height, width) {
    this.size = [height, width];
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.origin = [0, 0]; // first row and column shown, as fractions of a cell
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

  /** Move so that a cell is inside. */
  include(cell) {
    const shown = this.size.map((size) => size / this.zoom);
    this.moveTo(this.origin.map((first, side) => Math.min(Math.max(first, cell[side] + 1 - shown[side]), cell[side])));
  }
}

export class Heatmap {
  constructor(canvas) {
    this.canvas = canvas;
    this.bars = { rows: null, columns: null };
    this.cross = null;
    this.pinned = null;
  }

  /** Set the colour of each cell: `colours` has four bytes for each. */
  setCells(height, width, colours) {
    this.size = [height, width];
    this.cells = bitmap(height, width, colours);
  }

  /** Set the bars: for rows and columns, canvases with a row for each label, or null. */
  setBars(rows, columns) {
    this.bars = { rows, columns };
  }

  /** Return the cell at a place on the canvas, in CSS pixels, or null. */
  cellAt(x, y, view) {
    const place = this.placeAt(x, y, view).map(Math.floor);
    const box = this.#box();
    const inside = x >= box.x && y >= box.y && x < box.x + box.width && y < box.y + box.height;
    return inside && place.every((at, side) => at >= 0 && at < this.size[side]) ? place : null;
  }

  /** Return the place in cells, with fractions, of a place on the canvas. */
  placeAt(x, y, view) {
    const box = this.#box();
    return [
      view.origin[0] + ((y - box.y) / box.height) * (this.size[0] / view.zoom),
      view.origin[1] + ((x - box.x) / box.width) * (this.size[1] / view.zoom),
    ];
  }

  /** Return the thickness of one label's stripe. */
  #stripe() {
    const bar = this.bars.rows ?? this.bars.columns;
    if (!bar) return 0;
    const { width } = this.canvas.getBoundingClientRect();
    return bar.height === 1 ? 8 : Math.min(4, Math.max(1.5, (0.1 * width) / bar.height));
  }

  #box() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const thickness = (bar) => (bar ? bar.height * this.#stripe() + GAP : 0);
    const [x, y] = [thickness(this.bars.rows), thickness(this.bars.columns)];
    return { x, y, width: Math.max(1, width - x), height: Math.max(1, height - y) };
  }

  /** Return the height of the canvas for a width, so that cells are square; long maps are compressed. */
  heightFor(width) {
    const box = this.#box();
    const ratio = Math.min(2, Math.max(0.2, this.size[0] / this.size[1]));
    return (width - box.x) * ratio + box.y;
  }

  draw(view) {
    const { width, height } = this.canvas.getBoundingClientRect();
    const density = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(width * density));
    this.canvas.height = Math.max(1, Math.round(height * density));
    const context = this.canvas.getContext("2d");
    context.scale(density, density);
    const box = this.#box();
    const shown = this.size.map((size) => size / view.zoom);
    const [cellWidth, cellHeight] = [box.width / shown[1], box.height / shown[0]];
    context.imageSmoothingEnabled = cellWidth * density < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.cells, view.origin[1], view.origin[0], shown[1], shown[0], box.x, box.y, box.width, box.height);
    context.imageSmoothingEnabled = false;
    const { rows, columns } = this.bars;
    if (columns) context.drawImage(columns, view.origin[1], 0, shown[1], columns.height, box.x, 0, box.width, columns.height * this.#stripe());
    if (rows) {
      context.save();
      context.transform(0, 1, 1, 0, 0, 0); // the bar of the rows is drawn as one of columns, mirrored at the diagonal
      context.drawImage(rows, view.origin[0], 0, shown[0], rows.height, box.y, 0, box.height, rows.height * this.#stripe());
      context.restore();
    }
    context.save();
    context.beginPath();
    context.rect(box.x, box.y, box.width, box.height);
    context.clip();
    for (const [cell, colour] of [[this.cross, "#fff"], [this.pinned, "#ff3d7f"]]) {
      if (!cell) continue;
      const x = box.x + (cell[1] - view.origin[1]) * cellWidth;
      const y = box.y + (cell[0] - view.origin[0]) * cellHeight;
      const side = [Math.max(cellWidth, 5), Math.max(cellHeight, 5)];
      context.strokeStyle = "rgb(0 0 0 / .55)";
      context.lineWidth = 3;
      for (let pass = 0; pass < 2; pass++) {
        context.strokeRect(x + (cellWidth - side[0]) / 2, y + (cellHeight - side[1]) / 2, ...side);
        context.strokeStyle = colour;
        context.lineWidth = 1.5;
      }
    }
    context.restore();
  }
}

/** Return a canvas with a pixel for each cell. */
function bitmap(height, width, colours) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").putImageData(new ImageData(colours, width, height), 0, 0);
  return canvas;
}

/**
 * Return a bar of labels: a pixel across for each cell and, if images have several of few labels, one down for each of
 * these; otherwise one in the colour of the most frequent label. `groups` has the labels of the images of each cell.
 */
export function labelBar(groups, nLabels, isMultilabel) {
  const stripes = isMultilabel && nLabels <= 12 ? nLabels : 1;
  const canvas = Object.assign(document.createElement("canvas"), { width: groups.length, height: stripes });
  const context = canvas.getContext("2d");
  groups.forEach((images, cell) => {
    const counts = new Map();
    for (const labels of images) for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
    const shown = stripes > 1 ? [...counts] : [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 1);
    for (const [label, number] of shown) {
      context.globalAlpha = stripes > 1 ? number / images.length : 1;
      context.fillStyle = labelColour(label, nLabels);
      context.fillRect(cell, stripes > 1 ? label : 0, 1, 1);
    }
  });
  return canvas;
}
