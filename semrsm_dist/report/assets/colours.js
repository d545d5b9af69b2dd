// Colours: the scale of the maps, those of labels, and those of patches.

/** Return the colours of a scale, three bytes each, from their hexadecimal text. */
export function readScale(text) {
  return Uint8Array.from({ length: text.length / 2 }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16));
}

const COLOURS = 256;

/** Return the colours of a scale as pixels: a number each, of its red, green, blue and opaque bytes. */
export function pixelsOf(scale) {
  const bytes = new Uint8ClampedArray(4 * COLOURS).fill(255);
  for (let place = 0; place < COLOURS; place++) bytes.set(scale.subarray(3 * place, 3 * place + 3), 4 * place);
  return new Uint32Array(bytes.buffer);
}

/** Return the colour of label number `index` of `total`: hues that differ, in two lightnesses. */
export function labelColour(index, total) {
  const hue = total <= 12 ? (360 * index) / total : (index * 137.508) % 360;
  return `hsl(${hue.toFixed(1)} 65% ${index % 2 ? 42 : 62}%)`;
}

const CORNERS = [[[52, 92, 235], [222, 84, 20]], [[120, 232, 255], [255, 236, 90]]];

/** Return the colour of a place in the first image: blue to orange across, light to dark up, told apart by everybody. */
export function patchColour(across, down, alpha) {
  const mix = (a, b, t) => a.map((value, channel) => value + (b[channel] - value) * t);
  const [red, green, blue] = mix(mix(...CORNERS[0], across), mix(...CORNERS[1], across), down).map(Math.round);
  return `rgb(${red} ${green} ${blue} / ${alpha.toFixed(3)})`;
}

/** Return values that colours can be scaled by, sorted: finite ones, without the ones of a diagonal. */
export function sortedFinite(...matrices) {
  const all = new Float32Array(matrices.reduce((total, matrix) => total + matrix.length, 0));
  let size = 0;
  for (const matrix of matrices) for (const value of matrix) if (Number.isFinite(value) && value !== 1) all[size++] = value;
  return all.subarray(0, size).sort();
}

/** Return the range of sorted values without their lowest and highest hundredth; rounding of `size` is no range. */
export function limits(sorted, size) {
  if (!sorted.length) return [0, 1];
  const low = sorted[Math.floor(0.01 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
  return [low, Math.max(high, low + 1e-6 * size)];
}

/** Colours of values between two ends. */
export class ByValue {
  constructor(low, high) {
    Object.assign(this, { low, factor: (COLOURS - 1) / (high - low) });
  }

  /** Colour cells: `palette` are the pixels of the scale, and undefined cells are transparent. */
  paint(values, palette, pixels) {
    const { low, factor } = this;
    for (let at = 0; at < values.length; at++) {
      const place = (values[at] - low) * factor + 0.5;
      pixels[at] = place - place !== 0 ? 0 : palette[place <= 0 ? 0 : place >= COLOURS ? COLOURS - 1 : place | 0];
    }
  }
}

/** Colours by the share of values that are smaller. */
export class ByRank {
  constructor(sorted) {
    // The value above which each colour but the first begins.
    this.steps = Float32Array.from({ length: sorted.length > 1 ? COLOURS - 1 : 0 }, (_, at) =>
      sorted[Math.ceil(((at + 0.5) * (sorted.length - 1)) / (COLOURS - 1)) - 1]);
  }

  paint(values, palette, pixels) {
    const { steps } = this;
    for (let at = 0; at < values.length; at++) {
      const value = values[at];
      let [low, high] = [0, steps.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (steps[middle] < value) low = middle + 1;
        else high = middle;
      }
      pixels[at] = value - value !== 0 ? 0 : palette[low];
    }
  }
}
