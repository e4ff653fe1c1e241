/**
 * The recurrent state as data: one table from which every other place follows. A row says name, shape (without the batch
 * axis) and initial value; the dtype is always float32.
 *
 * A graph may hold a tensor otherwise than users and snapshots see it: heads split, a stabilizer less a constant a head, a
 * start value that float16 holds. `toGraph` and `fromGraph` go between the two; `inOtherForm` goes between memories with and
 * without a stabilizer, which models with soft-capped gates may have. Layouts as in the Python runtime's `state.py`:
 *
 *     C     (H, dk, dv)     mLSTM matrix memory        n  (H, dk, 1)   its normalizer     m  (1, H)   its stabilizer
 *     conv  (channels, K-1) last inputs of the causal convolution, oldest first
 *     y c n m  (H, 1, DH)   sLSTM output, cell, normalizer, stabilizer
 */

import { StateError } from "./errors.js";

/** Exact beyond float32's range of use: exp(m - m') is 0 in the first step. */
export const SLSTM_INITIAL_M = -1e30;
/** The same for float16. */
export const SMALL_INITIAL_M = -1e4;
/** Ends of the names under which a snapshot stores what belongs to a tensor: no tensor of a table may have one. */
const BESIDE = [".scale", ".offset"];

/** Tensors by name; each float32, one sequence. */
export type State = Map<string, Float32Array>;

/** One tensor of the recurrent state; `shape` without the batch axis, as users and snapshots see it. */
export class StateSpec {
  readonly inputName: string;
  readonly outputName: string;
  readonly length: number;
  readonly #offset: Float32Array;

  constructor(
    readonly name: string,
    readonly shape: readonly number[],
    readonly initial = 0,
    readonly headSplits = 1,
    readonly offset: readonly number[] = [],
  ) {
    this.inputName = `past.${name}`;
    this.outputName = `present.${name}`;
    this.length = product(shape);
    this.#offset = Float32Array.from(offset);
  }

  /** The shape of the graph's input and output, without the batch axis. */
  get graphShape(): readonly number[] {
    if (this.headSplits === 1) return this.shape;
    const [heads = 1, depth = 1, width = 1] = this.shape;
    return [heads * this.headSplits, depth, width / this.headSplits];
  }

  /** A copy as the graph holds it; not below a start value of float16. */
  toGraph(array: Float32Array): Float32Array {
    if (this.headSplits !== 1) return this.#regrouped(array, true);
    const offset = this.#offset;
    const held = offset.length ? array.map((x, i) => x - (offset[i % offset.length] as number)) : array.slice();
    return this.initial === SMALL_INITIAL_M ? held.map((x) => Math.max(x, SMALL_INITIAL_M)) : held;
  }

  /** A copy as users see it. */
  fromGraph(array: Float32Array): Float32Array {
    if (this.headSplits !== 1) return this.#regrouped(array, false);
    const offset = this.#offset;
    return offset.length ? array.map((x, i) => x + (offset[i % offset.length] as number)) : array.slice();
  }

  /** (heads, depth, splits, part) to (heads, splits, depth, part), or back. */
  #regrouped(array: Float32Array, toGraph: boolean): Float32Array {
    const [heads = 1, depth = 1, width = 1] = this.shape;
    const splits = this.headSplits;
    const part = width / splits;
    const result = new Float32Array(array.length);
    for (let head = 0; head < heads; head++) {
      for (let row = 0; row < depth; row++) {
        for (let split = 0; split < splits; split++) {
          const whole = ((head * depth + row) * splits + split) * part;
          const apart = ((head * splits + split) * depth + row) * part;
          const [from, to] = toGraph ? [whole, apart] : [apart, whole];
          result.set(array.subarray(from, from + part), to);
        }
      }
    }
    return result;
  }
}

/** The rows, in graph order. */
export class StateTable {
  readonly #names: ReadonlySet<string>;

  constructor(readonly rows: readonly StateSpec[]) {
    const shapes = new Map(rows.map((row) => [row.name, row.shape]));
    this.#names = new Set(shapes.keys());
    if (shapes.size !== rows.length || BESIDE.some((end) => rows.some((row) => row.name.endsWith(end)))) {
      throw new StateError(
        `expected distinct state names without the end ${BESIDE.join(" or ")}, got others; the state table is damaged`,
      );
    }
    const odd = rows.find(({ name }) => name.endsWith(".C") && !isMemory(shapes, name.slice(0, -2)));
    if (odd) {
      throw new StateError(
        `expected ${odd.name} of 3 axes with .n and .m of its heads, got others; the state table is damaged`,
      );
    }
  }

  has(name: string): boolean {
    return this.#names.has(name);
  }

  /** Bytes of one session's state: the same after one token and after a million. */
  get nbytes(): number {
    return this.rows.reduce((sum, row) => sum + 4 * row.length, 0);
  }

  /** A fresh state as the graph takes it. */
  initial(): State {
    return new Map(this.rows.map((row) => [row.name, new Float32Array(row.length).fill(row.initial)]));
  }

  /** A copy of a state as the graph holds it. */
  toGraph(state: State): State {
    return new Map(this.rows.map((row) => [row.name, row.toGraph(tensorOf(state, row.name))]));
  }

  /** A copy of a state that the graph holds, as users see it. */
  fromGraph(state: State): State {
    return new Map(this.rows.map((row) => [row.name, row.fromGraph(tensorOf(state, row.name))]));
  }

  /** The same model with matrix memories stabilized where they are not here, and not where they are: names and shapes only. */
  otherForm(): StateTable {
    const rows: StateSpec[] = [];
    for (const row of this.rows) {
      const { block, tensor } = partsOf(row.name);
      const ofMatrix = this.has(`${block}.C`);
      if (tensor !== "m" || !ofMatrix) rows.push(new StateSpec(row.name, row.shape, row.initial));
      if (tensor === "n" && ofMatrix && !this.has(`${block}.m`)) {
        rows.push(new StateSpec(`${block}.m`, [1, row.shape[0] ?? 1]));
      }
    }
    return new StateTable(rows);
  }

  /** What a tensor must start with: 0, but for the stabilizer m of an sLSTM, whose cell is one with an output y. */
  wantedInitial(row: StateSpec): number {
    return row.name.endsWith(".m") && this.has(`${row.name.slice(0, -2)}.y`) ? SLSTM_INITIAL_M : 0;
  }
}

/** Whether a matrix memory has a normalizer of its heads and keys, and a stabilizer of its heads if any. */
function isMemory(shapes: ReadonlyMap<string, readonly number[]>, block: string): boolean {
  const [memory = [], normalizer = [], stabilizer] = ["C", "n", "m"].map((tensor) => shapes.get(`${block}.${tensor}`));
  const [heads, depth] = memory;
  return (
    memory.length === 3 &&
    `${normalizer}` === `${[heads, depth, 1]}` &&
    (stabilizer === undefined || `${stabilizer}` === `${[1, heads]}`)
  );
}

/**
 * A state of `wanted.otherForm()` in the form of `wanted`. The memory is C exp(m), n exp(m) for the stabilized (C, n, m).
 * Without stabilizers m is 0; with them it is chosen so that no number of n exceeds 1.
 */
export function inOtherForm(state: State, wanted: StateTable): State {
  const made = new Map(state);
  for (const row of wanted.otherForm().rows) {
    const { block, tensor } = partsOf(row.name);
    const memory = made.get(`${block}.C`);
    if (tensor !== "n" || memory === undefined) continue;
    const n = tensorOf(made, row.name);
    const heads = row.shape[0] ?? 1;
    const gone = made.get(`${block}.m`);
    const exponents = gone ?? Float32Array.from({ length: heads }, (_, head) => -Math.log(largest(n, head, heads)));
    made.delete(`${block}.m`);
    const factors = exponents.map(Math.exp);
    made.set(`${block}.C`, scaled(memory, factors));
    made.set(row.name, scaled(n, factors));
    if (gone === undefined)
      made.set(
        `${block}.m`,
        exponents.map((x) => -x),
      );
  }
  return new Map(wanted.rows.map((row) => [row.name, tensorOf(made, row.name)]));
}

/** Each head's numbers times a number of its own. */
export function scaled(array: Float32Array, factors: Float32Array): Float32Array {
  const size = array.length / factors.length;
  return array.map((x, i) => x * (factors[Math.floor(i / size)] as number));
}

/** The largest absolute number of a head, at least 1. */
function largest(array: Float32Array, head: number, heads: number): number {
  const size = array.length / heads;
  return array.subarray(head * size, (head + 1) * size).reduce((most, x) => Math.max(most, Math.abs(x)), 1);
}

/** A tensor that the table says is there. */
export function tensorOf(state: State, name: string): Float32Array {
  const array = state.get(name);
  if (array === undefined) {
    throw new StateError(`expected the state tensor ${name}, got none; take a snapshot of this model`);
  }
  return array;
}

function partsOf(name: string): { block: string; tensor: string } {
  const dot = name.lastIndexOf(".");
  return { block: name.slice(0, Math.max(dot, 0)), tensor: name.slice(dot + 1) };
}

export function product(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a * b, 1);
}
