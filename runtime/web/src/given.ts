/** What every call does with the options that it is given, whoever reads them. */

import { InputError, shown, typeName } from "./errors.js";

/**
 * Options without those that are left out, by undefined or null; InputError for what is no object with options, and for names
 * that are none of `names` where these are told.
 */
export function givenOptions<Options extends object>(options: Options, names?: readonly string[]): Options {
  if (typeof options !== "object" || options === null || Symbol.iterator in options) {
    const got = typeof options === "object" ? typeName(options) : shown(options);
    throw new InputError(`expected options as an object, got ${got}; correct them`);
  }
  const entries = Object.entries(options);
  const unknown = names && entries.find(([name]) => !names.includes(name));
  if (unknown) {
    throw new InputError(`expected options among ${names.join(", ")}, got ${shown(unknown[0])}; remove it`);
  }
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined && value !== null)) as Options;
}

/** InputError for those of `names` that are given and neither true nor false. */
export function checkFlags(options: object, ...names: string[]): void {
  for (const [name, value] of membersOf(options, names)) {
    if (typeof value !== "boolean") {
      throw new InputError(`expected ${name} as true or false, got ${shown(value)}; correct it`);
    }
  }
}

/** InputError for a signal that is none, and for those of `functions` that are given and none. */
export function checkListening(options: object, functions: readonly string[]): void {
  for (const [name, value] of membersOf(options, functions)) {
    if (typeof value !== "function") {
      throw new InputError(`expected ${name} as a function, got ${typeName(value)}; correct it`);
    }
  }
  for (const [, signal] of membersOf(options, ["signal"])) {
    if (!(signal instanceof AbortSignal)) {
      throw new InputError(`expected signal as an AbortSignal, got ${typeName(signal)}; correct it`);
    }
  }
}

function membersOf(options: object, names: readonly string[]): [name: string, value: unknown][] {
  return Object.entries(options).filter(([name]) => names.includes(name));
}
