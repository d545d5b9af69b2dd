// The images of a run: names, labels, thumbnails, and larger pictures of those whose patches are shown.

import { el } from "./dom.js";
import { decode } from "./source.js";

export class Gallery {
  constructor(data) {
    this.vocabulary = data.labels;
    this.sides = Object.fromEntries(Object.entries(data.images).map(([name, side]) => [name, new Side(name, side)]));
    const seen = Object.fromEntries(Object.entries(data.seen).map(([name, of]) => [name, new Seen(of)]));
    this.seen = data.served ? this.sides : seen;
    this.isMultilabel = Object.values(data.images).some((side) => side.labels.some((labels) => labels.length > 1));
  }

  id(side, image) {
    return this.sides[side].id(image);
  }

  /** Return the labels of an image, as places in the vocabulary. */
  labels(side, image) {
    return this.sides[side].labels(image);
  }

  labelText(side, image) {
    return this.labels(side, image).map((label) => this.vocabulary[label]).join(", ");
  }

  /** Return a thumbnail with the image's name and labels for those who cannot see it. */
  thumbnail(side, image, scale = 1) {
    const { id, problem } = { id: this.id(side, image), problem: this.sides[side].problem(image) };
    const labels = this.labelText(side, image);
    const picture = this.sides[side].picture(image, scale);
    const text = labels ? `${id} (${labels})` : id;
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", problem ? `${text}: ${problem}` : text);
    picture.title = problem ? `${text}\n${problem}` : text;
    return picture;
  }

  /** Return a promise of what the model sees of an image, as `[image, x, y, width, height]`, or of null. */
  async large(side, image) {
    return (await this.seen[side]?.large(image)) ?? null;
  }
}

class Side {
  constructor(name, side) {
    this.name = name;
    this.count = side.count;
    this.ids = side.ids;
    this.allLabels = side.labels;
    this.problems = side.problems;
    this.thumbnails = side.thumbnails;
    this.served = side.served;
    const index = (array) => (array ? new Map(Array.from(decode(array), (image, at) => [image, at])) : null);
    this.listed = index(side.rows);
    this.pictured = index(side.pictured) ?? this.listed;
    if (!this.thumbnails) return;
    this.sizes = decode(this.thumbnails.sizes);
    const rules = this.thumbnails.sheets.map((url, at) => `.thumb.${name}-${at}{background-image:url("${url}")}`);
    document.head.append(el("style", { textContent: rules.join("\n") }));
  }

  #place(image, places) {
    return places ? places.get(image) : image;
  }

  id(image) {
    return this.ids[this.#place(image, this.listed)] ?? `number ${image}`;
  }

  labels(image) {
    return this.allLabels[this.#place(image, this.listed)] ?? [];
  }

  problem(image) {
    return this.problems[image];
  }

  picture(image, scale) {
    const at = this.#place(image, this.pictured);
    const cell = this.thumbnails?.cell ?? 48;
    const [width, height] = this.thumbnails && at !== undefined ? [this.sizes[2 * at], this.sizes[2 * at + 1]] : [0, 0];
    const frame = el("span", { className: "frame" });
    frame.style.width = frame.style.height = `${cell * scale}px`;
    if (this.served) {
      this.#request(image, frame);
      return frame;
    }
    if (!width) {
      frame.classList.add("empty");
      frame.append(el("span", { textContent: this.problem(image) ? "changed or gone" : this.id(image) }));
      return frame;
    }
    const { across, down } = this.thumbnails;
    const onSheet = at % (across * down);
    const thumb = el("span", { className: `thumb ${this.name}-${Math.floor(at / (across * down))}` });
    thumb.style.width = `${width * scale}px`;
    thumb.style.height = `${height * scale}px`;
    thumb.style.backgroundSize = `${across * cell * scale}px auto`;
    thumb.style.backgroundPosition = `${-(onSheet % across) * cell * scale}px ${-Math.floor(onSheet / across) * cell * scale}px`;
    frame.append(thumb);
    return frame;
  }

  /** Fill a frame with a picture from the server, or with what is wrong with it. */
  #request(image, frame) {
    const picture = el("img", { src: `pictures/${this.name}/small/${image}.jpg`, alt: "", decoding: "async" });
    picture.addEventListener("error", async () => {
      this.problems[image] ??= await reasonOf(picture.src);
      frame.classList.add("empty");
      frame.title = `${this.id(image)}\n${this.problems[image]}`;
      frame.setAttribute("aria-label", `${this.id(image)}: ${this.problems[image]}`);
      frame.replaceChildren(el("span", { textContent: "changed or gone" }));
    });
    frame.append(picture);
  }

  /** Return a promise of a larger picture from the server, as `[image, x, y, width, height]`, or of null. */
  async large(image) {
    if (!this.served) return null;
    const picture = Object.assign(new Image(), { src: `pictures/${this.name}/large/${image}.jpg` });
    try {
      await picture.decode();
    } catch {
      return null; // the thumbnail says why
    }
    return [picture, 0, 0, picture.naturalWidth, picture.naturalHeight];
  }
}

/** Return what the server says of a picture that it does not have. */
async function reasonOf(address) {
  try {
    return (await (await fetch(address)).text()).trim();
  } catch {
    return "the server does not answer";
  }
}

class Seen {
  constructor({ indices, pictures }) {
    this.places = new Map(Array.from(decode(indices), (image, at) => [image, at]));
    this.pictures = pictures;
    this.sizes = decode(pictures.sizes);
    this.loaded = new Map();
  }

  async large(image) {
    const at = this.places.get(image);
    if (at === undefined || !this.sizes[2 * at]) return null;
    const { across, down, cell } = this.pictures;
    const [sheet, place] = [Math.floor(at / (across * down)), at % (across * down)];
    if (!this.loaded.has(sheet)) {
      const picture = new Image();
      picture.src = this.pictures.sheets[sheet];
      this.loaded.set(sheet, picture.decode().then(() => picture));
    }
    const [x, y] = [(place % across) * cell, Math.floor(place / across) * cell];
    return [await this.loaded.get(sheet), x, y, this.sizes[2 * at], this.sizes[2 * at + 1]];
  }
}
