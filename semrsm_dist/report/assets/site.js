// The same as in a page that holds everything, from files beside the page, or from a server that makes them.

import { Pyramid } from "./pyramid.js";
import { EmbeddedSource, readMatch, readQueries } from "./source.js";

const PAUSE = 700; // milliseconds, between two questions whether something is there
const SORTED = 1000; // images that a server sorts by similarity in a moment
const PLANES = ["spatial", "semantic", "difference", "gap"];

/** Return the response to a request; throws what the server says is wrong. */
async function request(address) {
  let response;
  try {
    response = await fetch(address);
  } catch (error) {
    const remedy = location.protocol === "file:" ? "a site needs a web server, such as python -m http.server in its folder" : "it may have ended";
    throw new Error(`The server does not answer: ${remedy}.`, { cause: error });
  }
  if (response.ok) return response;
  throw Object.assign(new Error((await response.text()).trim() || response.statusText), { status: response.status });
}

/** Return the response to a request once it is there; `report` is called with how much of it is done. */
async function wait(address, report) {
  for (;;) {
    const response = await request(address);
    if (response.status !== 202) return response;
    report(Number(response.headers.get("Share")));
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** A site: maps are files of tiles, all else is in the page. */
export class SiteSource extends EmbeddedSource {
  #images = new Map();

  orders(layer) {
    return this.layer(layer).tiles?.orders ?? null;
  }

  kernels(layer) {
    return this.layer(layer).tiles.kernels;
  }

  mapsNote(layer) {
    const { finest, top, note } = this.layer(layer).tiles;
    if (top === 0) return note; // cells are single pairs
    const width = 2 ** finest;
    const cells = width > 1 ? `The smallest cells are means of ${width} x ${width} pairs.` : "Zoom in until cells are single pairs.";
    return `${note} ${cells}`.trim();
  }

  async maps(layer, kernel, order, report) {
    const { size: tile, finest, top } = this.layer(layer).tiles;
    const images = await this.#order(layer, order, report);
    const size = images.map((part) => part.length);
    const folder = `tiles/${this.layers.indexOf(layer)}/${kernel}/${order}`;
    const pyramid = new Pyramid({
      size, tile, finest, top,
      load: async (level, row, column) => {
        const mirrored = this.symmetric && row > column;
        const place = mirrored ? [column, row] : [row, column];
        const response = await request(`${folder}/${level}/${place.join("-")}.bin`);
        const found = new Float32Array(await response.arrayBuffer());
        const [height, width] = pyramid.cells(level).map((length, axis) => Math.min(tile, length - place[axis] * tile));
        const planes = PLANES.map((name, at) => {
          const values = found.subarray(at * height * width, (at + 1) * height * width);
          return [name, mirrored ? transpose(values, height, width) : values];
        });
        const share = Number(response.headers.get("Share") ?? 1);
        return { ...Object.fromEntries(planes), share, height: mirrored ? width : height, width: mirrored ? height : width };
      },
      members: (axis, level, cell) => {
        const span = 2 ** pyramid.shifts(level)[axis];
        return images[axis].subarray(cell * span, (cell + 1) * span);
      },
    });
    return { pyramid, placeOf: (axis, image) => images[axis].indexOf(image) };
  }

  /** Return the images of the rows and of the columns in an order. */
  async #order(layer, order, report) {
    const name = order === "cluster" ? `${layer}/${order}` : order; // the others are the same in all layers
    if (!this.#images.has(name)) {
      const response = await wait(`orders/${this.layers.indexOf(layer)}/${order}.bin`, report);
      const images = new Uint32Array(await response.arrayBuffer());
      const nRows = this.data.images[this.rowSide].count;
      this.#images.set(name, this.symmetric ? [images, images] : [images.subarray(0, nRows), images.subarray(nRows)]);
    }
    return this.#images.get(name);
  }
}

/** A server, which has everything. */
export class ServerSource extends SiteSource {
  firstOrder(layer) {
    const most = Math.max(...Object.values(this.data.images).map((side) => side.count));
    const first = super.firstOrder(layer);
    return first === "cluster" && most > SORTED ? "given" : first;
  }

  get insideNote() {
    return "Zoom in until a cell is one pair, and choose that.";
  }

  async queries(layer, report) {
    const response = await wait(`queries/${this.layers.indexOf(layer)}.json`, report);
    return readQueries(await response.json());
  }

  async pair(layer, row, column) {
    const swapped = this.symmetric && row > column;
    const place = swapped ? [column, row] : [row, column];
    try {
      const found = await (await request(`pairs/${this.layers.indexOf(layer)}/${place.join("-")}.json`)).json();
      return { match: found.matches && readMatch(found.matches, 0, swapped), numbers: found, note: found.note };
    } catch (error) {
      return { match: null, numbers: null, note: error.status === 404 ? "The run does not keep this pair." : error.message };
    }
  }
}

function transpose(values, height, width) {
  const turned = new Float32Array(values.length);
  for (let row = 0; row < height; row++) for (let column = 0; column < width; column++) turned[column * height + row] = values[row * width + column];
  return turned;
}
