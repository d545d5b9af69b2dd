// Maps of any size: tiles of cells, of several levels. Those that are looked at are loaded, and kept a while.

const KEPT = 96; // tiles, a MiB each
const PATIENCE = 250; // milliseconds, after which a tile that is not complete is loaded again
const FAILED = 10000; // the same of one that could not be loaded
const SAMPLE = 16384; // values that colours are scaled by
const PER_TILE = 2048; // of these, from each tile if there are several
const SMALLEST = 0.75; // device pixels of a cell

/** Return the exponent of the smallest power of two that is not below a length. */
function bits(length) {
  return length <= 1 ? 0 : 32 - Math.clz32(length - 1);
}

export class Pyramid {
  /**
   * `size` is how many cells of level 0 there are down and across; a cell of level k is about 2**k of them each way.
   * `tile` is the number of cells along an edge of a tile, and `finest` and `top` are the levels that there are.
   * `load(level, row, column)` returns a promise of a tile: `height` and `width`, its planes by name, and `share`, how
   * much of its pairs it is of. `members(axis, level, cell)` returns the images of a row (0) or column (1).
   */
  constructor({ size, tile, finest, top, load, members }) {
    Object.assign(this, { size, tile, finest, top, load, members });
    this.tiles = new Map();
    this.pending = new Set();
    this.listener = () => {};
    this.problem = "";
    this.version = 0; // counts what has been loaded
  }

  /** Return how often each axis is halved: a cell of a level has 2**shift of level 0. The longer axis comes first. */
  shifts(level) {
    const longest = bits(Math.max(...this.size));
    return this.size.map((length) => Math.max(0, level - longest + bits(length)));
  }

  /** Return the rows and columns of a level. */
  cells(level) {
    return this.shifts(level).map((shift, axis) => Math.ceil(this.size[axis] / 2 ** shift));
  }

  /** Return the finest level whose cells can be seen, if one of level 0 has so many device pixels down and across. */
  levelFor(pixels) {
    for (let level = this.finest; level < this.top; level++)
      if (this.shifts(level).every((shift, axis) => pixels[axis] * 2 ** shift >= SMALLEST)) return level;
    return this.top;
  }

  /** Return the tiles of a level in a part of the maps, as `[row, column]`; the part is in cells of level 0. */
  within(level, origin, shown) {
    const spans = this.shifts(level).map((shift, axis) => {
      const span = this.tile * 2 ** shift;
      const last = Math.ceil(this.cells(level)[axis] / this.tile);
      const [from, to] = [Math.floor(origin[axis] / span), Math.ceil((origin[axis] + shown[axis]) / span)];
      return Array.from({ length: Math.max(0, Math.min(to, last) - Math.max(from, 0)) }, (_, at) => Math.max(from, 0) + at);
    });
    return spans[0].flatMap((row) => spans[1].map((column) => [row, column]));
  }

  /** Return a tile as far as it is there, or undefined. */
  peek(level, row, column) {
    return this.tiles.get(`${level}/${row}/${column}`);
  }

  /** Load a tile unless it is there, or load it again if there may be more of it. */
  want(level, row, column) {
    const name = `${level}/${row}/${column}`;
    const found = this.tiles.get(name);
    if (found) {
      this.tiles.delete(name); // the last in the order is the one used last
      this.tiles.set(name, found);
    }
    if (this.pending.has(name) || (found && (found.share === 1 || performance.now() - found.since < PATIENCE))) return;
    this.pending.add(name);
    this.#load(name, level, row, column);
  }

  async #load(name, level, row, column) {
    try {
      const tile = await this.load(level, row, column);
      Object.assign(tile, { level, since: performance.now(), painted: {}, thinned: {} });
      this.tiles.set(name, tile);
      this.version++;
      this.problem = "";
      for (const oldest of [...this.tiles.keys()].slice(0, Math.max(0, this.tiles.size - KEPT))) this.tiles.delete(oldest);
      this.pending.delete(name);
      if (tile.share < 1) setTimeout(() => this.listener(), PATIENCE + 10);
    } catch (error) {
      this.problem = error.message;
      setTimeout(() => this.pending.delete(name), FAILED);
    }
    this.listener();
  }

  /** Return what is known of a cell: its planes and `share`, or null while it is not there. */
  at(level, row, column) {
    const tile = this.peek(level, Math.floor(row / this.tile), Math.floor(column / this.tile));
    if (!tile) return null;
    const place = (row % this.tile) * tile.width + (column % this.tile);
    const { spatial, semantic, difference, gap, share } = tile;
    return { spatial: spatial[place], semantic: semantic[place], difference: difference[place], gap: gap[place], share };
  }

  /** Return values of a plane from all tiles of a level that are there. */
  sample(level, plane) {
    const tiles = [...this.tiles.values()].filter((tile) => tile.level === level);
    const most = tiles.length > 1 ? PER_TILE : SAMPLE;
    const parts = tiles.map((tile) => (tile.thinned[plane] ??= thin(tile[plane], most)));
    const all = new Float32Array(parts.reduce((total, part) => total + part.length, 0));
    parts.reduce((start, part) => (all.set(part, start), start + part.length), 0);
    return thin(all, SAMPLE);
  }
}

/** Return values, if they are many only some from everywhere: one of each `stride`, not always the same one. */
function thin(values, most) {
  const stride = Math.ceil(values.length / most);
  if (stride <= 1) return values;
  const some = new Float32Array(Math.floor(values.length / stride));
  for (let at = 0; at < some.length; at++) some[at] = values[at * stride + ((at * 7) % stride)];
  return some;
}
