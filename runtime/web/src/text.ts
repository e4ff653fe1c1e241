/**
 * Text in, text out: the outermost of the three layers ids -> events -> text. Memory is constant: the decode stream holds a
 * bounded number of tokens, the stop matcher at most one stop string.
 */

import type { DecodeStream } from "./decode.js";
import { InputError, shown, typeName } from "./errors.js";
import { type Finish, generate, type TokenEvent, type TokenSession } from "./generate.js";
import { givenOptions } from "./given.js";
import type { GenerationOptions, ResolvedOptions } from "./options.js";
import type { Tokenizer } from "./tokenizer.js";

/** Text that is certain: whole characters, and no part of a stop string. */
export interface Piece {
  readonly type: "piece";
  readonly text: string;
}

export type TextEvent = Piece | Finish;

/** `stop` strings end a stream ("stop") and are not shown. */
export interface TextOptions extends GenerationOptions {
  stop?: readonly string[];
}

/** What turns a prompt into ids, and options into checked ones. */
export interface TextModel {
  tokenizer(): Promise<Tokenizer>;
  encode(prompt: string, options?: { start?: boolean }): Promise<number[]>;
  resolve(options: GenerationOptions): ResolvedOptions;
}

/** A session that knows its model. */
export interface TextSession extends TokenSession {
  readonly model: TextModel;
  readonly tokens: number;
}

/**
 * Lets text through except what might be the beginning of a stop string; the match that begins first wins. The result does not
 * depend on how the text is cut: it goes through character by character. Where a stop string is complete but a longer one began
 * before it, the matcher waits until that one is complete or has failed. Text that is pushed with `visible` false takes part in
 * matching and is not shown.
 */
export class StopMatcher {
  /** Whether a stop string is complete. */
  hit = false;
  readonly #stops: readonly Automaton[];
  #held: string[] = []; // one entry a character; empty for an invisible one
  #first = 0; // position in the text of the first held character
  #end = 0; // and behind the last one
  #begin: number | null = null; // where the match that won so far begins

  constructor(stops: readonly string[]) {
    if (!Array.isArray(stops)) {
      throw new InputError(`expected stop as a list of strings, got ${typeName(stops)}; correct it`);
    }
    const wrong = stops.findIndex((stop) => typeof stop !== "string" || !stop);
    if (wrong >= 0) {
      const got = stops[wrong] === "" ? "an empty string" : shown(stops[wrong]);
      throw new InputError(`expected stop as a list of non-empty strings, got ${got}; correct it`);
    }
    if (stops.some((stop) => /\p{Cs}/u.test(stop))) {
      throw new InputError("expected stop strings of whole characters, got half of one: no text has it; correct them");
    }
    this.#stops = [...new Set(stops)].map((stop) => new Automaton(stop));
  }

  /** Whether there is anything to match. */
  get waits(): boolean {
    return this.#stops.length > 0;
  }

  /** The text that may be shown now; after a stop string (`hit`) nothing any more. */
  push(text: string, visible = true): string {
    if (!this.#stops.length) return visible ? text : "";
    let shown = "";
    for (const character of text) {
      if (this.hit) break;
      this.#held.push(visible ? character : "");
      this.#end++;
      shown += this.#decided(character);
    }
    return shown;
  }

  /** What was held back and turned out to be no stop string. */
  flush(): string {
    const shown = this.#release(this.#begin ?? this.#end);
    if (this.#begin !== null) this.#stop();
    return shown;
  }

  #decided(character: string): string {
    for (const stop of this.#stops) {
      if (stop.push(character)) this.#begin = Math.min(this.#end - stop.length, this.#begin ?? Number.POSITIVE_INFINITY);
    }
    const undecided = Math.min(this.#end, ...this.#stops.map((stop) => this.#end - stop.matched));
    if (this.#begin === null || this.#begin > undecided) return this.#release(undecided);
    const shown = this.#release(this.#begin);
    this.#stop();
    return shown;
  }

  #stop(): void {
    this.#held = [];
    this.#first = this.#end;
    this.#begin = null;
    this.hit = true;
  }

  /** Held characters before this position. */
  #release(end: number): string {
    const count = Math.max(0, end - this.#first);
    this.#first += count;
    return this.#held.splice(0, count).join("");
  }
}

/** How much of a stop string the text ends with (Knuth, Morris, Pratt): constant work a character. */
class Automaton {
  readonly length: number;
  matched = 0;
  readonly #stop: readonly string[];
  readonly #shorter: number[]; // of each beginning: its longest proper end that is a beginning too

  constructor(stop: string) {
    this.#stop = [...stop];
    this.length = this.#stop.length;
    this.#shorter = this.#stop.map(() => 0);
    let size = 0;
    for (let at = 1; at < this.length; at++) {
      while (size && this.#stop[at] !== this.#stop[size]) size = this.#shorter[size - 1] as number;
      if (this.#stop[at] === this.#stop[size]) size++;
      this.#shorter[at] = size;
    }
  }

  /** Whether the stop string is complete with this character; `matched` is then the next beginning's length. */
  push(character: string): boolean {
    while (this.matched && this.#stop[this.matched] !== character) this.matched = this.#shorter[this.matched - 1] as number;
    if (this.#stop[this.matched] === character) this.matched++;
    if (this.matched < this.length) return false;
    this.matched = this.#shorter[this.length - 1] as number;
    return true;
  }
}

/**
 * Read `text` and continue it in a session: Pieces of text, then one Finish.
 *
 * In a session that has read tokens before, nothing is put in front of the text: no second bos token. A stop string that is one
 * token of the tokenizer (as <|im_end|>) is that token's id too; special tokens take part in matching and are never shown.
 * Pieces follow the prompt as its ids decode. Options are checked at the call, the text before anything is fed.
 */
export function streamText(
  session: TextSession,
  text: string,
  options: TextOptions = {},
): AsyncGenerator<TextEvent, void, undefined> {
  if (typeof Object(session).model?.resolve !== "function") {
    throw new InputError(`expected a session to read the text, got ${typeName(session)}; make one with model.session()`);
  }
  return textRun(session.model, options)(session, text);
}

/** `streamText` with options that are checked here, for one session of the model, once. */
export function textRun(
  model: TextModel,
  options: TextOptions,
): (session: TextSession, text: string) => AsyncGenerator<TextEvent, void, undefined> {
  const { stop = [], ...others } = givenOptions(options);
  const matcher = new StopMatcher(stop);
  const resolved = model.resolve(others);
  return (session, text) => started(session, text, stop, matcher, resolved);
}

async function* started(
  session: TextSession,
  text: string,
  stop: readonly string[],
  matcher: StopMatcher,
  resolved: ResolvedOptions,
): AsyncGenerator<TextEvent, void, undefined> {
  const tokenizer = await session.model.tokenizer();
  const ids = await session.model.encode(text, { start: session.tokens === 0 });
  const words = new Map<number, string>();
  for (const word of stop) {
    const id = tokenizer.added.get(word);
    if (id !== undefined && id < session.vocabSize) words.set(id, word); // no others can come
  }
  const options = { ...resolved, stopIds: new Set([...resolved.stopIds, ...words.keys()]) };
  const events = generate(session, ids, options, () => matcher.hit);
  yield* pieces(events, tokenizer, tokenizer.stream(ids), matcher, words);
}

async function* pieces(
  events: AsyncGenerator<TokenEvent, void, undefined>,
  tokenizer: Tokenizer,
  decoder: DecodeStream,
  matcher: StopMatcher,
  words: ReadonlyMap<number, string>,
): AsyncGenerator<TextEvent, void, undefined> {
  for await (const event of events) {
    let text: string;
    if (event.type === "token") {
      text = matcher.push(decoder.push(event.id));
      const special = tokenizer.specialText(event.id);
      if (special) {
        text += matcher.push(matcher.waits ? decoder.settle() : "");
        text += matcher.push(special, false);
      }
    } else {
      text = matcher.push(decoder.flush());
      if (event.stopId !== null) text += matcher.push(words.get(event.stopId) ?? "", false); // a longer one may end with it
      text += matcher.flush();
    }
    if (text) yield { type: "piece", text };
    if (event.type === "finish") {
      // A stop string cancels the generator below, which knows no text.
      const stopped = matcher.hit || (event.stopId !== null && words.has(event.stopId));
      yield stopped ? { ...event, reason: "stop" } : event;
    }
  }
}

/** Pieces of text alone; `finish` says how it ended. */
export class TextStream implements AsyncIterableIterator<string, void, undefined> {
  /** Set once the stream ran to its end; undefined before, and for one that was left or failed. */
  finish: Finish | undefined;

  constructor(readonly events: AsyncGenerator<TextEvent, void, undefined>) {}

  /** The next piece; throws what the generation throws. */
  async next(): Promise<IteratorResult<string, void>> {
    for (;;) {
      const { done, value } = await this.events.next();
      if (done) return { done, value: undefined };
      if (value.type === "piece") return { done: false, value: value.text };
      this.finish = value;
    }
  }

  /** Leave it: the session has read the prompt and what was seen. */
  async return(): Promise<IteratorResult<string, void>> {
    await this.events.return();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
