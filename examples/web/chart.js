/** A line of memory over tokens, with a bounded number of points. */

const WIDTH = 600;
const HEIGHT = 90;
const MOST_POINTS = 200;

export class Chart {
  #points = []; // [tokens, bytes]
  #line;
  #caption;

  /** `line` is an SVG polyline, `caption` says in words what it shows. */
  constructor(line, caption) {
    this.#line = line;
    this.#caption = caption;
  }

  /** One more measurement; with many, every other one is dropped. */
  add(tokens, bytes) {
    this.#points.push([tokens, bytes]);
    if (this.#points.length > MOST_POINTS) this.#points = this.#points.filter((_, i) => i % 2 === 0);
    this.draw();
  }

  clear() {
    this.#points = [];
    this.draw();
  }

  /** From the first token to the last, and from 0 to half as much again as the largest. */
  draw() {
    const points = this.#points;
    const [first, last] = [points.at(0)?.[0] ?? 0, points.at(-1)?.[0] ?? 0];
    const most = Math.max(1, ...points.map(([, bytes]) => bytes));
    const x = (tokens) => ((tokens - first) / Math.max(1, last - first)) * WIDTH;
    const y = (bytes) => HEIGHT - (bytes / (1.5 * most)) * HEIGHT;
    this.#line.setAttribute("points", points.map(([tokens, bytes]) => `${x(tokens).toFixed(1)},${y(bytes).toFixed(1)}`).join(" "));
    const range = points.length ? `: ${(points.at(-1)[1] / 1e6).toFixed(1)} MB from token ${first} to ${last}` : "";
    this.#caption.textContent = `Memory of the runtime over tokens${range}`;
  }
}
