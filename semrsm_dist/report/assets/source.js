// Where the page's numbers and pictures come from: here from the page itself. Sites and servers offer the same methods,
// which is why those that may take time return promises.

import { Pyramid } from "./pyramid.js";

const TYPES = { float32: Float32Array, uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array, bfloat16: Uint16Array };

const decoded = new WeakMap();

/** Return the numbers of an array of the data model; they are decoded once. */
export function decode(array) {
  if (!decoded.has(array)) decoded.set(array, read(array));
  return decoded.get(array);
}

function read(array) {
  const text = atob(array.data);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  const stored = new TYPES[array.dtype](bytes.buffer);
  if (array.dtype !== "bfloat16") return stored;
  const wide = new Uint32Array(stored.length);
  for (let place = 0; place < stored.length; place++) wide[place] = stored[place] << 16;
  return new Float32Array(wide.buffer);
}

/** Return the number of an array's type that stands for no index. */
export function missing(array) {
  return { uint32: 2 ** 32 - 1, uint16: 2 ** 16 - 1, uint8: 2 ** 8 - 1 }[array.dtype];
}

const NOT_HERE = "The matched patches of this pair are not in this page: it holds those of the best hits of the queries that gain and lose most, and of the pairs with the largest difference. The command semrsm view shows those of any pair.";

export class EmbeddedSource {
  constructor(data) {
    this.data = data;
    this.symmetric = data.symmetric;
    this.gapName = data.certified ? "certified gap" : "gap to the bound";
    this.rowSide = data.symmetric ? "images" : "queries";
    this.layers = data.layers.map((layer) => layer.name);
  }

  layer(name) {
    return this.data.layers.find((layer) => layer.name === name);
  }

  /** Return what the maps of a layer can be sorted by, or null if it has none. */
  orders(layer) {
    const { maps } = this.layer(layer);
    return maps && Object.keys(maps.orders);
  }

  /** Return what the maps of a layer are sorted by at first. */
  firstOrder(layer) {
    return this.orders(layer).includes("label") ? "label" : "cluster";
  }

  /** Return the kernels of the maps of a layer. */
  kernels(layer) {
    const { cells, derived } = this.layer(layer).maps;
    return [...Object.keys(cells), ...Object.keys(derived?.widths ?? {})];
  }

  /** Return what the maps of a layer leave out. */
  mapsNote(layer) {
    return this.layer(layer).maps.note;
  }

  /** Return what is said of a cell of several pairs, none of which can be chosen. */
  get insideNote() {
    return "No pair of this cell has its matched patches in this page.";
  }

  /**
   * Return the maps of a layer in a kernel and an order: their `pyramid`, and `placeOf(axis, image)`, the row (0) or
   * column (1) of level 0 that an image is in, or -1.
   */
  async maps(layer, kernel, order) {
    const { maps } = this.layer(layer);
    const images = [decode(maps.orders[order].rows), decode(maps.orders[order].columns)];
    const ofKernel = maps.cells[kernel] ?? maps.cells.cosine;
    const isSorted = order in ofKernel;
    const cells = ofKernel[isSorted ? order : "given"];
    const edges = [decode(cells.row_edges), decode(cells.column_edges)];
    const size = edges.map((of) => of.length - 1);
    let places = size.map((length) => Uint32Array.from({ length }, (_, at) => at));
    if (!isSorted) {
      const given = [decode(maps.orders.given.rows), decode(maps.orders.given.columns)];
      places = images.map((wanted, side) => {
        const at = new Map(Array.from(given[side], (image, place) => [image, place]));
        return Uint32Array.from(wanted, (image) => at.get(image));
      });
    }
    const spread = (array) => arrange(decode(array), places[0], places[1], size[1], this.symmetric);
    const cosines = { spatial: spread(cells.spatial), semantic: spread(cells.semantic), gap: spread(cells.gap) };
    const { spatial, semantic, gap } = kernel in maps.cells ? cosines : derive(cosines, kernel, maps.derived, places);
    const difference = cells.difference ? spread(cells.difference) : semantic.map((value, at) => value - spatial[at]);
    const whole = { height: size[0], width: size[1], spatial, semantic, difference, gap, share: 1 };
    const pyramid = new Pyramid({
      size, tile: Math.max(...size), finest: 0, top: 0,
      load: async () => whole,
      members: (axis, _, cell) => images[axis].subarray(edges[axis][cell], edges[axis][cell + 1]),
    });
    const placeOf = (axis, image) => {
      const place = images[axis].indexOf(image);
      return place < 0 ? -1 : edges[axis].findLastIndex((edge) => edge <= place);
    };
    return { pyramid, placeOf };
  }

  /** Return the queries of a layer, or null. */
  async queries(layer) {
    const { queries } = this.layer(layer);
    return queries && readQueries(queries);
  }

  /** Return what is at hand of a pair: its `match`, its `numbers`, either may be null, and a `note` without the former. */
  async pair(layer, row, column) {
    const { matches } = this.layer(layer);
    const swapped = this.symmetric && row > column;
    const [first, second] = swapped ? [column, row] : [row, column];
    const at = this.matchedPairs(layer).findIndex((pair) => pair[0] === first && pair[1] === second);
    const match = at < 0 ? null : readMatch(matches, at, swapped);
    return { match, numbers: match ?? this.#numbers(layer, row, column), note: this.layer(layer).problem || NOT_HERE };
  }

  /** Return the pairs of a layer whose matched tokens are at hand, as `[row, column]`. */
  matchedPairs(layer) {
    const { matches } = this.layer(layer);
    if (!matches) return [];
    const pairs = decode(matches.pairs);
    return Array.from({ length: matches.pairs.shape[0] }, (_, p) => [pairs[2 * p], pairs[2 * p + 1]]);
  }

  /** Return the pair with matched tokens that matching brings closest together, or null. */
  async largest(layer) {
    const { matches } = this.layer(layer);
    if (!matches) return null;
    const [semantic, spatial] = [decode(matches.semantic), decode(matches.spatial)];
    const gain = (p) => (Number.isFinite(spatial[p]) ? semantic[p] - spatial[p] : -1);
    const best = semantic.reduce((most, _, p) => (gain(p) > gain(most) ? p : most), 0);
    return this.matchedPairs(layer)[best];
  }

  /** Return the similarities of a pair where they are at hand, or null. */
  #numbers(layer, row, column) {
    const { maps } = this.layer(layer);
    if (!maps) return null;
    const cells = maps.cells.cosine.given;
    if (!cells || cells.difference) return null;
    const places = [decode(maps.orders.given.rows).indexOf(row), decode(maps.orders.given.columns).indexOf(column)];
    const at = cellIndex(...places, cells.column_edges.shape[0] - 1, this.symmetric);
    return { spatial: decode(cells.spatial)[at], semantic: decode(cells.semantic)[at], gap: decode(cells.gap)[at] };
  }
}

/** Return the values of another kernel, of which cosines and norms are known; rows and columns are at some places. */
function derive({ spatial, semantic, gap }, kernel, { row_norms, column_norms, unit, widths }, places) {
  const norms = [row_norms, column_norms].map((array, axis) => Float64Array.from(places[axis], (place) => unit * decode(array)[place]));
  const width = norms[1].length;
  const of = (cosine, at, sigma) => {
    const [first, second] = [norms[0][Math.floor(at / width)], norms[1][at % width]];
    const inner = cosine * Math.sqrt(first * second);
    return sigma === null ? inner : Math.exp(-Math.max(first + second - 2 * inner, 0) / (2 * sigma * sigma));
  };
  const { spatial: spatialWidth, semantic: semanticWidth } = widths[kernel];
  return {
    spatial: spatial.map((cosine, at) => of(cosine, at, spatialWidth)),
    semantic: semantic.map((cosine, at) => of(cosine, at, semanticWidth)),
    gap: gap.map((value, at) => of(Math.min(semantic[at] + value, 1), at, semanticWidth) - of(semantic[at], at, semanticWidth)),
  };
}

/** Return the queries of the data model with their numbers. */
export function readQueries(queries) {
  const rankings = queries.rankings.map((ranking) => ({
    method: ranking.method,
    shown: ranking.indices.shape[1],
    none: missing(ranking.indices),
    ...Object.fromEntries(["indices", "score", "semantic", "spatial", "gap"].map((name) => [name, decode(ranking[name])])),
  }));
  return { rows: decode(queries.rows), rankings, judged: queries.judged, ks: queries.ks, note: queries.note };
}

/** Return one of the matches of the data model, with its images exchanged if it is `swapped`. */
export function readMatch(matches, at, swapped) {
  const size = matches.partners.shape[1];
  const part = (array) => decode(array).subarray(at * size, (at + 1) * size);
  const match = {
    grid: matches.grid,
    semantic: decode(matches.semantic)[at],
    spatial: decode(matches.spatial)[at],
    gap: decode(matches.gap)[at],
    partners: Array.from(part(matches.partners), (partner) => (partner === missing(matches.partners) ? -1 : partner)),
    matched: Array.from(part(matches.matched)),
    identity: Array.from(part(matches.identity)),
  };
  return swapped ? swap(match) : match;
}

/** Return a matrix, row by row, from one that is stored in another order, of a symmetric one its upper triangle. */
function arrange(values, rows, columns, width, symmetric) {
  const matrix = new Float32Array(rows.length * columns.length);
  let at = 0;
  for (const row of rows) for (const column of columns) matrix[at++] = values[cellIndex(row, column, width, symmetric)];
  return matrix;
}

/** Return where a cell is stored: in a symmetric matrix, only its upper triangle is. */
function cellIndex(row, column, width, symmetric) {
  if (!symmetric) return row * width + column;
  const [low, high] = row > column ? [column, row] : [row, column];
  return low * width - (low * (low - 1)) / 2 + high - low;
}

/** Return the match of a pair with its images exchanged. */
function swap(match) {
  const partners = match.partners.map(() => -1);
  const matched = match.matched.map((value) => (Number.isNaN(value) ? value : 0));
  match.partners.forEach((partner, token) => {
    if (partner < 0) return;
    partners[partner] = token;
    matched[partner] = match.matched[token];
  });
  return { ...match, partners, matched };
}
