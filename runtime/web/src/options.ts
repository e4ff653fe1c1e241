/** What a generation is asked for, as one value: given by a caller, then resolved against the bundle's defaults. */

import { InputError, shown, typeName } from "./errors.js";
import { checkFlags, checkListening, givenOptions } from "./given.js";
import { MOST_IDS, resolveSampling, type SamplingOptions } from "./sampling.js";

const DEFAULT_MAX_TOKENS = 256;

/** Called before the first chunk of a prompt and after each: how many of its ids were read, of how many. */
export type OnPrompt = (done: number, total: number) => void;

/**
 * Options as a caller gives them. What is left out (or undefined, or null) takes the bundle's default; where it has none, 256
 * tokens at most and greedy. `stopIds` come on top of the bundle's own, which `ignoreEos` leaves out. `signal` cancels before
 * a chunk of the prompt or a token, and leaves the session usable.
 */
export interface GenerationOptions extends Partial<SamplingOptions> {
  maxTokens?: number;
  minTokens?: number;
  stopIds?: Iterable<number>;
  ignoreEos?: boolean;
  signal?: AbortSignal;
  onPrompt?: OnPrompt;
}

/** When a generation ends, and how it samples; made by `resolveOptions`, which checks. */
export interface ResolvedOptions {
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly stopIds: ReadonlySet<number>;
  readonly sampling: SamplingOptions;
  readonly signal: AbortSignal | undefined;
  readonly onPrompt: OnPrompt | undefined;
}

/** Given options over a bundle's sampling defaults and stop ids; InputError for bad ones and for unknown ones. */
export function resolveOptions(
  options: GenerationOptions = {},
  defaults: Readonly<Partial<SamplingOptions>> = {},
  eosIds: Iterable<number> = [],
): ResolvedOptions {
  const given = givenOptions(options);
  const { maxTokens, minTokens, stopIds, ignoreEos, signal, onPrompt, ...chosen } = given;
  checkFlags(given, "ignoreEos");
  checkListening(given, ["onPrompt"]);
  const ids = checkIds(stopIds ?? []);
  return {
    maxTokens: checkCount("maxTokens", maxTokens ?? DEFAULT_MAX_TOKENS),
    minTokens: checkCount("minTokens", minTokens ?? 0),
    stopIds: new Set(ignoreEos ? ids : [...ids, ...eosIds]),
    sampling: resolveSampling({ ...defaults, ...chosen }),
    signal,
    onPrompt,
  };
}

function checkCount(name: string, value: unknown): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 0) {
    throw new InputError(`expected ${name} as an integer of 0 or more, got ${shown(value)}; correct it`);
  }
  return value;
}

function checkIds(stops: unknown): number[] {
  const iterable = typeof stops === "object" && stops !== null && Symbol.iterator in stops;
  const ids: unknown[] = [];
  for (const id of iterable ? (stops as Iterable<unknown>) : []) {
    if (ids.push(id) > MOST_IDS) {
      throw new InputError(`expected at most ${MOST_IDS} stopIds, got more; pass those that can come`);
    }
  }
  if (!iterable || !ids.every((id): id is number => Number.isSafeInteger(id) && (id as number) >= 0)) {
    throw new InputError(`expected stopIds as a list of integers of 0 or more, got ${typeName(stops)}; correct it`);
  }
  return ids;
}
