// Colours: the scale of the maps, those of labels, and those of patches.

/** Return the colours of a scale, three bytes each, from their hexadecimal text. */
export function readScale(text) {
  return Uint8Array.from({ length: text.length / 2 }, (_, at) => parseInt(text.slice(2 * at, 2 * at + 2), 16));
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

/** Return the range of finite values without their lowest and highest hundredth, and without the ones of a diagonal. */
export function limits(...matrices) {
  const values = [];
  for (const matrix of matrices) for (const value of matrix) if (Number.isFinite(value) && value !== 1) values.push(value);
  if (!values.length) return [0, 1];
  const sorted = Float32Array.from(values).sort();
  const low = sorted[Math.floor(0.01 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
  return [low, Math.max(high, low + 1e-6)];
}

/** Return a function from a value to its share of the values that are smaller. */
export function ranker(matrix) {
  const sorted = matrix.filter((value) => Number.isFinite(value) && value !== 1).sort();
  return (value) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    return sorted.length > 1 ? low / (sorted.length - 1) : 0;
  };
}
