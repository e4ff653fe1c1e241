/**
 * Choose the next token from logits: the same logits, options and seed give the same id on every machine, and in every
 * runtime of this project. The Python runtime's `sampling.py` specifies each step; the numbers in comments here are its.
 */

import { InputError, shown, typeName, VerificationError } from "./errors.js";
import { freshSeed, ONE, SplitMix64, weight } from "./exactMath.js";
import { givenOptions } from "./given.js";

const LARGEST_BIAS = 1e6;
const LARGEST_WINDOW = 2 ** 20 - 1;
export const MOST_IDS = 1 << 20;
const HEAD = 64; // candidates that are sorted at first for top-p

/**
 * How to sample; the default is greedy.
 *
 * temperature 0 takes the largest logit. topK 0, topP 1 and minP 0 switch a filter off. `seed` null takes fresh randomness; a
 * bigint up to 2^64 - 1, or a number that holds it exactly. The penalties look at the last `penaltyWindow` tokens of prompt
 * and generated text. `logitBias` adds to logits by id (-Infinity bans); `banned` ids never come.
 */
export interface SamplingOptions {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  seed: number | bigint | null;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  penaltyWindow: number;
  logitBias: ReadonlyMap<number, number> | Readonly<Record<number, number>>;
  banned: Iterable<number>;
}

const DEFAULTS: SamplingOptions = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  seed: null,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  penaltyWindow: 64,
  logitBias: {},
  banned: [],
};

/** Given options over the defaults; InputError for values that make no sense, and for options that nobody knows. */
export function resolveSampling(given: Readonly<Partial<SamplingOptions>> = {}): SamplingOptions {
  const unknown = Object.keys(given).find((name) => !Object.hasOwn(DEFAULTS, name));
  if (unknown !== undefined) {
    throw new InputError(`expected options among ${Object.keys(DEFAULTS).sort().join(", ")}, got ${shown(unknown)}; remove it`);
  }
  const present = Object.entries(given).filter(([, value]) => value !== undefined);
  const options: SamplingOptions = { ...DEFAULTS, ...Object.fromEntries(present) };
  checkNumber("temperature", options.temperature, 0, 1e4);
  checkNumber("topP", options.topP, 0, 1);
  checkNumber("minP", options.minP, 0, 1);
  checkNumber("repetitionPenalty", options.repetitionPenalty, 1e-4, 1e4);
  checkNumber("presencePenalty", options.presencePenalty, -1e4, 1e4);
  checkNumber("frequencyPenalty", options.frequencyPenalty, -1e4, 1e4);
  checkInteger("topK", options.topK, 2 ** 31);
  checkInteger("penaltyWindow", options.penaltyWindow, LARGEST_WINDOW + 1);
  if (options.topP === 0) {
    throw new InputError("expected topP above 0, got 0; use temperature 0 for greedy decoding");
  }
  if (options.seed !== null) checkSeed(options.seed);
  return options;
}

function checkNumber(name: string, value: unknown, low: number, high: number): void {
  if (typeof value !== "number" || !(low <= value && value <= high)) {
    throw new InputError(`expected ${name} from ${low} to ${high}, got ${shown(value)}; correct it`);
  }
}

function checkInteger(name: string, value: unknown, limit: number): void {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value >= limit) {
    throw new InputError(`expected ${name} as an integer from 0 to ${limit - 1}, got ${shown(value)}; correct it`);
  }
}

function checkSeed(value: unknown): void {
  const exact = typeof value === "bigint" ? BigInt.asUintN(64, value) === value : Number.isSafeInteger(value);
  if (!exact || (value as number | bigint) < 0) {
    throw new InputError(
      `expected seed as an integer from 0 to 2^53 - 1, or a bigint below 2^64, got ${shown(value)}; correct it`,
    );
  }
}

/**
 * Stateful only through its random generator and the window of recent tokens: one a stream. `prompt` are ids that count as
 * seen; `late` are ids that may be kept away for a while. InputError for ids outside the vocabulary, or if none may come.
 */
export class Sampler {
  readonly #options: SamplingOptions;
  readonly #random: SplitMix64;
  readonly #window: Window | null;
  readonly #bias: ReadonlyMap<number, number>;
  readonly #late: readonly number[];

  constructor(
    options: Readonly<Partial<SamplingOptions>>,
    vocabSize: number,
    { prompt = [], late = [] }: { prompt?: Iterable<number>; late?: Iterable<number> } = {},
  ) {
    this.#options = resolveSampling(givenOptions(options));
    const { seed, penaltyWindow, repetitionPenalty, presencePenalty, frequencyPenalty } = this.#options;
    this.#random = new SplitMix64(seed === null ? freshSeed() : BigInt(seed));
    const penalizes = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
    this.#window = penalizes ? new Window(penaltyWindow) : null;
    for (const id of penalizes ? prompt : []) this.#window?.push(id);
    this.#bias = biases(this.#options, vocabSize);
    this.#late = [...new Set(late)].filter((id) => id >= 0 && id < vocabSize);
    const banned = new Set([...this.#bias].filter(([, bias]) => bias === Number.NEGATIVE_INFINITY).map(([id]) => id));
    for (const id of this.#late) banned.add(id);
    if (banned.size >= vocabSize) {
      throw new InputError(`expected some of ${vocabSize} ids to be allowed, got a ban of all; allow one`);
    }
  }

  /** The next id for float32 logits (V,), which are not changed; VerificationError for NaN, infinity, or all -Infinity. */
  sample(logits: Float32Array, holdLate = false): number {
    largestOf(logits);
    const adjusted = this.#adjusted(logits, holdLate);
    const token = this.#options.temperature > 0 ? this.#drawn(adjusted) : largestAt(adjusted);
    this.#window?.push(token);
    return token;
  }

  /** Step 1; a copy only if anything changes. */
  #adjusted(logits: Float32Array, holdLate: boolean): Float32Array {
    const counts = this.#window?.counts;
    const late = holdLate ? this.#late : [];
    if (!counts?.size && !this.#bias.size && !late.length) return logits;
    const adjusted = logits.slice();
    const { repetitionPenalty: rate, presencePenalty, frequencyPenalty } = this.#options;
    for (const [id, count] of counts ?? []) {
      const z = adjusted[id] as number;
      adjusted[id] = (z > 0 ? z / rate : z * rate) - (presencePenalty + frequencyPenalty * count);
    }
    for (const [id, bias] of this.#bias) adjusted[id] = (adjusted[id] as number) + bias;
    for (const id of late) adjusted[id] = Number.NEGATIVE_INFINITY;
    return adjusted;
  }

  /** Steps 3 to 8. */
  #drawn(logits: Float32Array): number {
    const { temperature, topK, topP, minP } = this.#options;
    const most = largestOf(logits);
    let ids: ArrayLike<number> = topK > 0 && topK < logits.length ? first(logits, topK) : allOf(logits);
    if (topP < 1) ids = nucleus(logits, ids, most, topP);
    if (minP > 0) {
      const least = minP * ONE;
      ids = Array.from(ids).filter((id) => weight((logits[id] as number) - most) >= least);
    }
    const weights = new Float64Array(ids.length);
    let sum = 0;
    for (let i = 0; i < ids.length; i++) {
      const difference = (logits[ids[i] as number] as number) - most;
      sum += weights[i] = weight(temperature === 1 ? difference : difference / temperature);
    }
    const drawn = this.#random.below(sum);
    let running = 0;
    for (let i = 0; i < ids.length; i++) {
      running += weights[i] as number;
      if (running > drawn) return ids[i] as number;
    }
    throw new VerificationError("expected weights that sum up, got others; this is a mistake of the sampler");
  }
}

/** How often each id occurs among the last `size` tokens; a token costs the same whatever the size. */
class Window {
  readonly counts = new Map<number, number>();
  readonly #recent: Int32Array;
  #read = 0;
  #held = 0;

  constructor(readonly size: number) {
    this.#recent = new Int32Array(size);
  }

  /** One token more, and the oldest one out of a full window. */
  push(token: number): void {
    if (!this.size) return;
    if (this.#held === this.size) this.#forget(this.#recent[this.#read] as number);
    else this.#held++;
    this.#recent[this.#read] = token;
    this.#read = (this.#read + 1) % this.size;
    this.counts.set(token, (this.counts.get(token) ?? 0) + 1);
  }

  #forget(token: number): void {
    const count = (this.counts.get(token) ?? 0) - 1;
    if (count) this.counts.set(token, count);
    else this.counts.delete(token);
  }
}

function allOf(logits: Float32Array): ArrayLike<number> {
  return Uint32Array.from({ length: logits.length }, (_, id) => id);
}

/** The largest logit; VerificationError for one that is not finite, or a NaN anywhere. */
function largestOf(logits: Float32Array): number {
  let most = Number.NEGATIVE_INFINITY;
  for (const z of logits) {
    if (z > most) most = z;
    else if (Number.isNaN(z)) most = Number.NaN;
    if (Number.isNaN(most)) break;
  }
  if (!Number.isFinite(most)) {
    throw new VerificationError(`expected finite logits, got ${most} as their largest; the model or its input is broken`);
  }
  return most;
}

/** The id of the largest; of equal ones the lowest. */
function largestAt(logits: Float32Array): number {
  const most = largestOf(logits);
  return logits.indexOf(most);
}

/** Ids, ascending, of the first `count` of these ids (all, without them): larger logits first, of equal ones the lower id. */
function first(logits: Float32Array, count: number, ids?: ArrayLike<number>): number[] {
  const candidates = ids ?? allOf(logits);
  const values = Float32Array.from(candidates, (id) => logits[id] as number).sort();
  const bound = values[values.length - count] as number;
  let equal = count;
  for (let i = values.length - 1; i >= 0 && (values[i] as number) > bound; i--) equal--;
  const chosen: number[] = [];
  for (let i = 0; i < candidates.length; i++) {
    const id = candidates[i] as number;
    const z = logits[id] as number;
    if (z > bound || (z === bound && equal-- > 0)) chosen.push(id);
  }
  return chosen;
}

/** Step 5, as ascending ids. Only the head of the distribution is sorted in order: it grows until it holds enough. */
function nucleus(logits: Float32Array, ids: ArrayLike<number>, most: number, topP: number): number[] {
  let sum = 0;
  for (let i = 0; i < ids.length; i++) sum += weight((logits[ids[i] as number] as number) - most);
  const wanted = topP * sum;
  for (let size = HEAD; ; size *= 8) {
    const head = size < ids.length ? first(logits, size, ids) : Array.from(ids);
    head.sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
    let running = 0;
    for (let count = 0; count < head.length; count++) {
      running += weight((logits[head[count] as number] as number) - most);
      if (running >= wanted) return head.slice(0, count + 1).sort((a, b) => a - b);
    }
    if (size >= ids.length) return head.sort((a, b) => a - b);
  }
}

/** What to add to logits by id, the same at every step, in float32. */
function biases(options: SamplingOptions, vocabSize: number): Map<number, number> {
  const given = idsAndBiases(options);
  if (given.length > MOST_IDS) {
    throw new InputError(`expected at most ${MOST_IDS} ids in logitBias and banned, got more; remove some`);
  }
  for (const [id, bias] of given) {
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw new InputError(`expected ids from 0 to ${vocabSize - 1} in logitBias and banned, got ${shown(id)}; remove it`);
    }
    if (typeof bias !== "number" || !(Math.abs(bias) <= LARGEST_BIAS || bias === Number.NEGATIVE_INFINITY)) {
      throw new InputError(`expected biases of at most ${LARGEST_BIAS}, or -Infinity, got ${shown(bias)}; correct it`);
    }
  }
  return new Map(given.map(([id, bias]) => [id, Math.fround(bias)]));
}

function idsAndBiases({ logitBias, banned }: SamplingOptions): [number, number][] {
  const isObject = typeof logitBias === "object" && logitBias !== null && !Array.isArray(logitBias);
  const isList = typeof banned === "object" && banned !== null && Symbol.iterator in banned;
  if (!isObject || !isList) {
    throw new InputError(
      `expected logitBias as {id: number} and banned as ids, got ${typeName(logitBias)} and ${typeName(banned)}; correct them`,
    );
  }
  const pairs: [number, number][] =
    logitBias instanceof Map
      ? [...logitBias]
      : Object.entries(logitBias).map(([id, bias]) => [/^[0-9]{1,10}$/.test(id) ? Number(id) : Number.NaN, bias]);
  for (const id of banned) pairs.push([id, Number.NEGATIVE_INFINITY]);
  return pairs;
}
