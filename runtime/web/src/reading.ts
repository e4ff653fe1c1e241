/**
 * Read untrusted documents: JSON with closed sets of keys, types and ranges. Every reader of a bundle's documents stands on
 * this one, so that a hostile file ends in one sentence. Knows nothing of what the documents mean.
 */

import { BundleError, type ErrorClass, shown, type XlstmEdgeError } from "./errors.js";
import { Fraction, type Json, type JsonObject, parseDocument } from "./json.js";

export const LARGEST_INTEGER = 2 ** 53;
const LONGEST_TEXT = 4096;

/** JSON; `error` in one sentence for anything else. */
export function parseJson(content: Uint8Array | string, name: string, advice: string, error: ErrorClass = BundleError): Json {
  try {
    return parseDocument(content);
  } catch (cause) {
    throw new error(`expected ${shown(name)} to be JSON, got something else; ${advice}`, { cause });
  }
}

/** What a message calls a JSON value. */
function got(value: Json | undefined): string {
  if (value instanceof Fraction) return `${value.value}`;
  if (Array.isArray(value)) return "a list";
  return value instanceof Map ? "an object" : shown(value);
}

interface Settings {
  error: ErrorClass;
  advice: string;
}

/**
 * One JSON object whose keys are exactly those a reader knows, with typed access that names what is wrong. `where` is the
 * path of the object inside its document, for messages.
 */
export class Reader {
  readonly value: JsonObject;
  readonly #settings: Settings;

  /** `keys` null leaves the set open: for objects whose keys are data, as file names are. */
  constructor(
    value: Json | undefined,
    readonly where: string,
    keys: readonly string[] | null,
    optional: readonly string[] = [],
    settings: Settings = { error: BundleError, advice: "export the bundle again" },
  ) {
    this.#settings = settings;
    if (!(value instanceof Map)) throw this.refuse(where, "an object", value);
    this.value = value;
    if (keys === null) return;
    const unknown = [...value.keys()].find((key) => !keys.includes(key) && !optional.includes(key));
    if (unknown !== undefined) {
      const known = [...keys, ...optional].sort().join(", ");
      throw new settings.error(`expected ${where} with the keys ${known}, got ${shown(unknown)} as well; ${settings.advice}`);
    }
    const missing = keys.find((key) => !value.has(key));
    if (missing !== undefined) {
      throw new settings.error(`expected ${where} with the key ${missing}, got an object without it; ${settings.advice}`);
    }
  }

  /** The error for a member that is not as wanted. */
  refuse(what: string, wanted: string, value: Json | undefined): XlstmEdgeError {
    return new this.#settings.error(`expected ${what} as ${wanted}, got ${got(value)}; ${this.#settings.advice}`);
  }

  /** The same, where what was got is said in words. */
  refuseWords(what: string, wanted: string, words: string): XlstmEdgeError {
    return new this.#settings.error(`expected ${what} as ${wanted}, got ${words}; ${this.#settings.advice}`);
  }

  /** A nested object with its own closed set of keys. */
  section(key: string, keys: readonly string[] | null, optional: readonly string[] = []): Reader {
    return new Reader(this.value.get(key), `${this.where} ${key}`, keys, optional, this.#settings);
  }

  /** A list of at most `most` nested objects. */
  sections(key: string, most: number, keys: readonly string[]): Reader[] {
    return this.#list(key, most).map((v, i) => new Reader(v, `${this.where} ${key} ${i}`, keys, [], this.#settings));
  }

  /** A string: whole characters, not absurdly long, matched by `pattern` as a whole. */
  text(key: string, pattern?: string): string {
    return this.#text(this.value.get(key), `${this.where} ${key}`, pattern);
  }

  /** One of a few strings. */
  among<Word extends string>(key: string, words: readonly Word[]): Word {
    const value = this.text(key);
    const word = words.find((word) => word === value);
    if (word === undefined) throw this.refuse(`${this.where} ${key}`, `one of ${words.join(", ")}`, value);
    return word;
  }

  /** A list of strings. */
  texts(key: string, most: number, pattern?: string): string[] {
    return this.#list(key, most).map((v) => this.#text(v, `${this.where} ${key}`, pattern));
  }

  /** An integer from `low` to `high`; true is none, nor is 2.0. */
  integer(key: string, low: number, high = LARGEST_INTEGER): number {
    return this.#integer(this.value.get(key), `${this.where} ${key}`, low, high);
  }

  /** A list of such integers. */
  integers(key: string, most: number, low: number, high = LARGEST_INTEGER): number[] {
    return this.#list(key, most).map((v) => this.#integer(v, `${this.where} ${key}`, low, high));
  }

  /** A finite number from `low` to `high`. */
  number(key: string, low: number, high: number): number {
    return this.#number(this.value.get(key), `${this.where} ${key}`, low, high);
  }

  /** A list of such numbers. */
  numbers(key: string, most: number, low: number, high: number): number[] {
    return this.#list(key, most).map((v) => this.#number(v, `${this.where} ${key}`, low, high));
  }

  /** true or false. */
  flag(key: string): boolean {
    const value = this.value.get(key);
    if (typeof value !== "boolean") throw this.refuse(`${this.where} ${key}`, "true or false", value);
    return value;
  }

  /** Whether the member is null (or an optional one that is absent). */
  isNull(key: string): boolean {
    return (this.value.get(key) ?? null) === null;
  }

  #list(key: string, most: number): Json[] {
    const values = this.value.get(key);
    const where = `${this.where} ${key}`;
    if (!Array.isArray(values)) throw this.refuse(where, `a list of at most ${most} members`, values);
    if (values.length <= most) return values;
    throw this.refuseWords(where, `a list of at most ${most} members`, `${values.length} members`);
  }

  #text(value: Json | undefined, where: string, pattern?: string): string {
    if (typeof value !== "string" || longerThan(value, LONGEST_TEXT) || /\p{Cs}/u.test(value)) {
      throw this.refuse(where, "a text", value);
    }
    if (pattern !== undefined && !new RegExp(`^(?:${pattern})$`, "u").test(value)) {
      throw this.refuse(where, `a text like ${pattern}`, value);
    }
    return value;
  }

  #integer(value: Json | undefined, where: string, low: number, high: number): number {
    const inside = (typeof value === "number" || typeof value === "bigint") && low <= value && value <= high;
    if (!inside) throw this.refuse(where, `an integer from ${low} to ${high}`, value);
    return Number(value);
  }

  #number(value: Json | undefined, where: string, low: number, high: number): number {
    const number = value instanceof Fraction ? value.value : value;
    const inside = (typeof number === "number" || typeof number === "bigint") && low <= number && number <= high;
    if (!inside) throw this.refuse(where, `a number from ${low} to ${high}`, value);
    return Number(number);
  }
}

/** Whether a text has more characters than so many; a pair of halves is one. */
function longerThan(text: string, most: number): boolean {
  return text.length > most && (text.length > 2 * most || [...text].length > most);
}
