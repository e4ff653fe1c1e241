/**
 * Ids to text as they stream: the pieces put together are what decoding all ids at once gives. Text comes only once it is
 * certain: half of a UTF-8 character waits for the other half, a token whose space depends on its neighbour for the
 * neighbour. It never throws, whatever the ids, and holds a bounded number of tokens.
 *
 * `ByteStream` is for tokens that are bytes, exact for all ids; `WindowStream` decodes the last tokens by a library together
 * with the new one. The Python runtime's `decode.py` has the reasons.
 */

import type { JsonObject } from "./json.js";
import { textOfBytes } from "./tokenDecoders.js";
import { replacedString, steps } from "./tokenizerLimits.js";
import { Utf8Decoder } from "./utf8.js";

const CONTEXT = 16; // tokens of known text in front of what is new
const LONGEST_RUN = 1024;
const PRIMED = 4 * LONGEST_RUN; // ids of a prompt that are looked at
const BYTE = /^<0x([0-9A-Fa-f]{2})>$/;
const LONGEST_MATCH = 64; // characters that a regular expression is taken to match at most
const UNFINISHED = 3; // most bytes of a character that is not complete
const UNKNOWN = "\ufffd";

/** Ids in, text out. */
export interface DecodeStream {
  /** The text that this token makes certain, possibly none. */
  push(token: number): string;
  /** What is held back and whole: for text whose order matters now, as before a special token that may stop it. */
  settle(): string;
  /** What is still held back; call once, at the end. */
  flush(): string;
}

/** How many characters at a text's end a decoder of a tokenizer.json may change when more tokens come. */
export function reach(decoder: JsonObject): number {
  let whole = false;
  let most = 0;
  for (const part of steps(decoder)) {
    const type = part.get("type");
    if (type === "Replace" && whole) {
      const string = replacedString(part);
      most += string ? [...string].length - 1 : LONGEST_MATCH;
    }
    whole ||= type === "Fuse" || type === "ByteLevel";
  }
  return Math.min(most, LONGEST_MATCH);
}

/** Each token is some bytes of UTF-8; `prompt` ids are read first, and their text is not given again. */
export class ByteStream implements DecodeStream {
  readonly #decoder = new Utf8Decoder();

  constructor(
    readonly bytesOf: (token: number) => Iterable<number>,
    prompt: readonly number[] = [],
  ) {
    for (const token of prompt.slice(-PRIMED)) this.push(token);
  }

  push(token: number): string {
    return this.#decoder.push(this.bytesOf(token));
  }

  settle(): string {
    return "";
  }

  flush(): string {
    return this.#decoder.flush();
  }
}

export interface WindowOptions {
  /** Whether the vocabulary has tokens <0x00> to <0xFF> that stand for bytes. */
  byteFallback: boolean;
  /** Characters at the end that later tokens may change. */
  reach: number;
}

/** The library's decode, over a window of the last tokens. Texts are arrays of characters, a pair of halves being one. */
export class WindowStream implements DecodeStream {
  #window: number[] = [];
  #shown = 0; // characters of the window's text that were given
  #run: number[] = []; // tokens of an unfinished run of bytes, behind the window
  #cut = false; // the window ends in bytes that are not of this run

  /** `textOf` gives a token's own text, null for one that is left out; `decode` is the library's, and must not throw. */
  constructor(
    readonly textOf: (token: number) => string | null,
    readonly decode: (tokens: number[]) => string,
    prompt: readonly number[],
    readonly options: WindowOptions,
  ) {
    this.#close(prompt.slice(-PRIMED).filter((token) => textOf(token) !== null));
  }

  push(token: number): string {
    const text = this.textOf(token);
    if (text === null) return "";
    if (this.options.byteFallback && BYTE.test(text)) {
      this.#run.push(token);
      return this.#run.length >= LONGEST_RUN ? this.#cutRun(false) : "";
    }
    const piece = this.#endRun();
    this.#window.push(token);
    return piece + this.#show(false);
  }

  settle(): string {
    const text = this.#run.length ? this.#cutRun(true) : "";
    return this.options.reach ? text + this.#show(true) : text;
  }

  flush(): string {
    const text = this.#endRun();
    return text + this.#show(true);
  }

  #show(final: boolean): string {
    const text = [...this.decode(this.#window)];
    const held = final ? 0 : Math.max(this.options.reach, text.at(-1) === UNKNOWN ? 1 : 0);
    const certain = Math.max(this.#shown, text.length - held);
    const piece = text.slice(this.#shown, certain).join("");
    this.#shown = certain;
    return piece + this.#shorten(text);
  }

  /** Keep the window's last tokens; what is held is given if tokens without text have pushed it out. */
  #shorten(text: string[]): string {
    const keep = CONTEXT + this.options.reach;
    if (this.#window.length <= 2 * keep) return "";
    const held = text.slice(this.#shown);
    this.#window = this.#window.slice(-keep);
    const rest = [...this.decode(this.#window)].length;
    this.#shown = Math.max(0, rest - held.length);
    return held.length > rest ? held.join("") : "";
  }

  /** The run behind the window becomes part of it; where it was cut, its text is given here. */
  #endRun(): string {
    const run = this.#run;
    this.#run = [];
    if (!this.#cut) {
      this.#window.push(...run);
      return "";
    }
    this.#cut = false;
    return this.#textOfRun(run);
  }

  /** Whole characters of a run that is too long, or of one that must be `right`; an unfinished one stays. */
  #cutRun(right: boolean): string {
    const run = this.#run;
    const most = Math.min(UNFINISHED, run.length);
    let left = 0;
    let text = this.#textOfRun(run);
    while (text.includes(UNKNOWN) && left < most) {
      left++;
      text = this.#textOfRun(run.slice(0, run.length - left));
    }
    if (text.includes(UNKNOWN)) {
      if (right) return "";
      left = 0;
      text = this.#textOfRun(run);
    }
    const held = this.#cut ? "" : this.#show(true);
    this.#close(run.slice(0, run.length - left));
    this.#run = run.slice(run.length - left);
    return held + text;
  }

  /** Tokens whose text has been given; what comes next is not one run with them. */
  #close(tokens: readonly number[]): void {
    const last = tokens.at(-1);
    if (last === undefined) return;
    this.#window = [...this.#window, ...tokens].slice(-CONTEXT);
    this.#shown = [...this.decode(this.#window)].length;
    this.#cut = this.options.byteFallback && BYTE.test(this.textOf(last) ?? "");
  }

  /** UTF-8, or U+FFFD for each byte if any is wrong. */
  #textOfRun(run: readonly number[]): string {
    return textOfBytes(run.map((token) => Number.parseInt((this.textOf(token) ?? "").slice(3, 5), 16)));
  }
}
