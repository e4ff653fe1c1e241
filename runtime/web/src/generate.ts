/**
 * Token ids in, events out. Knows sessions and samplers, nothing of text.
 *
 * A token is fed to the session before it is yielded: whatever ends a generation (its length, a stop id, a signal, a consumer
 * that walks away or takes a snapshot), the session has read the prompt and every token that was seen, each exactly once.
 */

import type { ResolvedOptions } from "./options.js";
import { Sampler } from "./sampling.js";

/** One generated token; `index` counts from 0. */
export interface Token {
  readonly type: "token";
  readonly id: number;
  readonly index: number;
}

/** Tokens read and written. */
export interface Usage {
  readonly promptTokens: number;
  readonly generatedTokens: number;
}

/** Seconds spent in the prompt, and from its end to the finish (the consumer's own time included). */
export interface Timings {
  readonly promptSeconds: number;
  readonly generateSeconds: number;
}

export type FinishReason = "eos" | "stop" | "length" | "cancelled";

/** The last event of a generation that ran to its end; `stopId` is the id that ended it, which was not fed. */
export interface Finish {
  readonly type: "finish";
  readonly reason: FinishReason;
  readonly usage: Usage;
  readonly timings: Timings;
  readonly stopId: number | null;
}

export type TokenEvent = Token | Finish;

/** What a generator needs of a session. */
export interface TokenSession {
  readonly vocabSize: number;
  /** Most ids of one `advance`. */
  readonly chunk: number;
  /** One id or more, all inside the vocabulary; InputError otherwise. */
  checkIds(tokens: Iterable<number>): number[];
  /** Consume 1 to `chunk` checked ids; the logits (V,) after the last. */
  advance(ids: readonly number[]): Promise<Float32Array>;
}

/**
 * Feed `prompt`, then yield a Token for each sampled id and a Finish at the end.
 *
 * Stop ids end the generation ("eos") and are neither emitted nor fed; before minTokens they are not sampled. Everything is
 * checked here, at the call: a bad prompt or option throws InputError and nothing has been fed. A prompt that is cut short
 * leaves the session after a whole number of chunks. `cancelled` is asked beside the signal.
 */
export function generate(
  session: TokenSession,
  prompt: Iterable<number>,
  options: ResolvedOptions,
  cancelled: () => boolean = () => false,
): AsyncGenerator<TokenEvent, void, undefined> {
  const ids = session.checkIds(prompt);
  const late = options.minTokens ? options.stopIds : [];
  const window = options.sampling.penaltyWindow;
  const seen = window ? ids.slice(-window) : ids;
  const sampler = new Sampler(options.sampling, session.vocabSize, { prompt: seen, late });
  return events(session, ids, options, sampler, () => cancelled() || options.signal?.aborted === true);
}

async function* events(
  session: TokenSession,
  prompt: readonly number[],
  options: ResolvedOptions,
  sampler: Sampler,
  cancelled: () => boolean,
): AsyncGenerator<TokenEvent, void, undefined> {
  const begin = performance.now();
  let logits: Float32Array | undefined;
  let done = 0;
  options.onPrompt?.(0, prompt.length);
  while (done < prompt.length && !cancelled()) {
    const part = prompt.slice(done, done + session.chunk);
    logits = await session.advance(part);
    done += part.length;
    options.onPrompt?.(done, prompt.length);
  }
  const start = performance.now();
  let count = 0;
  let stopId: number | null = null;
  let reason: FinishReason = "length";
  if (done < prompt.length || logits === undefined) reason = "cancelled";
  while (reason === "length" && count < options.maxTokens) {
    if (cancelled()) {
      reason = "cancelled";
      break;
    }
    const id = sampler.sample(logits as Float32Array, count < options.minTokens);
    if (options.stopIds.has(id)) {
      reason = "eos";
      stopId = id;
      break;
    }
    logits = await session.advance([id]);
    yield { type: "token", id, index: count++ };
  }
  const timings = { promptSeconds: (start - begin) / 1000, generateSeconds: (performance.now() - start) / 1000 };
  yield { type: "finish", reason, usage: { promptTokens: done, generatedTokens: count }, timings, stopId };
}
