// Where the page's numbers and pictures come from. A static page holds them; a server can offer the same methods, which
// is why those that may take time return promises.

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

export class EmbeddedSource {
  constructor(data) {
    this.data = data;
    this.symmetric = data.symmetric;
    this.gapName = data.certified ? "certified gap" : "gap to the bound";
    this.rowSide = data.symmetric ? "images" : "queries";
    this.layers = data.layers.map((layer) => layer.name);
  }

  #layer(name) {
    return this.data.layers.find((layer) => layer.name === name);
  }

  /** Return the orders of a layer's maps, or null if it has no maps. */
  orders(layer) {
    const maps = this.#layer(layer).maps;
    return maps && Object.keys(maps.orders);
  }

  /** Return what the maps of a layer leave out. */
  mapsNote(layer) {
    return this.#layer(layer).maps.note;
  }

  /**
   * Return the maps of a layer in an order: `rows` and `columns`, the images in that order; `rowEdges` and
   * `columnEdges`, where cells begin among them; and for each cell `spatial`, `semantic`, `difference` and `gap`.
   */
  async maps(layer, order) {
    const maps = this.#layer(layer).maps;
    const [rows, columns] = [decode(maps.orders[order].rows), decode(maps.orders[order].columns)];
    const isSorted = order in maps.cells;
    const cells = maps.cells[isSorted ? order : "given"];
    const [rowEdges, columnEdges] = [decode(cells.row_edges), decode(cells.column_edges)];
    const [height, width] = [rowEdges.length - 1, columnEdges.length - 1];
    let places = [rowEdges.subarray(0, height), columnEdges.subarray(0, width)];
    if (isSorted) places = [Uint32Array.from({ length: height }, (_, i) => i), Uint32Array.from({ length: width }, (_, i) => i)];
    else {
      const given = [decode(maps.orders.given.rows), decode(maps.orders.given.columns)];
      places = [rows, columns].map((wanted, side) => {
        const at = new Map(Array.from(given[side], (image, place) => [image, place]));
        return Uint32Array.from(wanted, (image) => at.get(image));
      });
    }
    const spread = (array) => arrange(decode(array), places[0], places[1], width, this.symmetric);
    const [spatial, semantic, gap] = [spread(cells.spatial), spread(cells.semantic), spread(cells.gap)];
    const difference = cells.difference ? spread(cells.difference) : semantic.map((value, at) => value - spatial[at]);
    return { rows, columns, rowEdges, columnEdges, height, width, spatial, semantic, difference, gap };
  }

  /** Return the queries of a layer, or null. */
  async queries(layer) {
    const queries = this.#layer(layer).queries;
    if (!queries) return null;
    const rankings = queries.rankings.map((ranking) => ({
      method: ranking.method,
      shown: ranking.indices.shape[1],
      none: missing(ranking.indices),
      ...Object.fromEntries(["indices", "score", "semantic", "spatial", "gap"].map((name) => [name, decode(ranking[name])])),
    }));
    return { rows: decode(queries.rows), rankings, judged: queries.judged, ks: queries.ks, note: queries.note };
  }

  /** Return the matched tokens of a pair, or null if they are not at hand. */
  async matches(layer, row, column) {
    const matches = this.#layer(layer).matches;
    if (!matches) return null;
    const swapped = this.symmetric && row > column;
    const [first, second] = swapped ? [column, row] : [row, column];
    const pairs = decode(matches.pairs);
    const nPairs = matches.pairs.shape[0];
    const at = Array.from({ length: nPairs }, (_, p) => p).find((p) => pairs[2 * p] === first && pairs[2 * p + 1] === second);
    if (at === undefined) return null;
    const size = matches.partners.shape[1];
    const part = (array) => decode(array).subarray(at * size, (at + 1) * size);
    const found = {
      grid: matches.grid,
      semantic: decode(matches.semantic)[at],
      spatial: decode(matches.spatial)[at],
      gap: decode(matches.gap)[at],
      partners: Array.from(part(matches.partners), (partner) => (partner === missing(matches.partners) ? -1 : partner)),
      matched: Array.from(part(matches.matched)),
      identity: Array.from(part(matches.identity)),
    };
    return swapped ? swap(found) : found;
  }

  /** Return the pairs of a layer whose matched tokens are at hand, as `[row, column]`. */
  matchedPairs(layer) {
    const matches = this.#layer(layer).matches;
    if (!matches) return [];
    const pairs = decode(matches.pairs);
    return Array.from({ length: matches.pairs.shape[0] }, (_, p) => [pairs[2 * p], pairs[2 * p + 1]]);
  }

  /** Return the pair with matched tokens that matching brings closest together, or null. */
  async largest(layer) {
    const matches = this.#layer(layer).matches;
    if (!matches) return null;
    const [semantic, spatial] = [decode(matches.semantic), decode(matches.spatial)];
    const gain = (p) => (Number.isFinite(spatial[p]) ? semantic[p] - spatial[p] : -1);
    const best = semantic.reduce((most, _, p) => (gain(p) > gain(most) ? p : most), 0);
    return this.matchedPairs(layer)[best];
  }

  /** Return the similarities of a pair where they are at hand, or null. */
  async numbers(layer, row, column) {
    const maps = this.#layer(layer).maps;
    if (!maps) return null;
    const cells = maps.cells.given;
    if (cells.difference) return null;
    const places = [decode(maps.orders.given.rows).indexOf(row), decode(maps.orders.given.columns).indexOf(column)];
    const at = cellIndex(...places, cells.column_edges.shape[0] - 1, this.symmetric);
    return { spatial: decode(cells.spatial)[at], semantic: decode(cells.semantic)[at], gap: decode(cells.gap)[at] };
  }
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
