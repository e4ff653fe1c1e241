/**
 * Every error this package raises on purpose.
 *
 *     XlstmEdgeError
 *     ├── InputError         an argument is wrong: a token id, a sampling option, a path
 *     ├── BundleError        a bundle cannot be used: not a bundle, another schema, damaged or missing files
 *     ├── StateError         a snapshot does not belong to this model, or is damaged
 *     ├── VerificationError  numbers that are none: the model or its input is broken
 *     ├── DependencyError    an optional package, or something of the browser, is needed for this call
 *     └── CancelledError     an AbortSignal ended a load or a prefill
 *
 * A message says what was expected, what was got and what to do, in one sentence, on one printable line.
 */

const LONGEST_SHOWN = 60;
const LONGEST_MESSAGE = 1000;

/** Root of the tree. */
export class XlstmEdgeError extends Error {
  override name = "XlstmEdgeError";

  constructor(message: string, options?: ErrorOptions) {
    const text = printable(message);
    super(text.length <= LONGEST_MESSAGE ? text : `${text.slice(0, LONGEST_MESSAGE)}...`, options);
  }
}

/** An argument is wrong. */
export class InputError extends XlstmEdgeError {
  override name = "InputError";
}

/** A bundle cannot be used. */
export class BundleError extends XlstmEdgeError {
  override name = "BundleError";
}

/** A snapshot does not fit this model. */
export class StateError extends XlstmEdgeError {
  override name = "StateError";
}

/** Numbers that are none. */
export class VerificationError extends XlstmEdgeError {
  override name = "VerificationError";
}

/** Something optional is missing. */
export class DependencyError extends XlstmEdgeError {
  override name = "DependencyError";
}

/** Ended by an AbortSignal. */
export class CancelledError extends XlstmEdgeError {
  override name = "CancelledError";
}

/** The classes by name, for errors that cross a worker's border. */
export const ERRORS = {
  XlstmEdgeError,
  InputError,
  BundleError,
  StateError,
  VerificationError,
  DependencyError,
  CancelledError,
} as const;

export type ErrorClass = new (message: string, options?: ErrorOptions) => XlstmEdgeError;

/** A value for a message: short, on one line; containers by their type alone. */
export function shown(value: unknown): string {
  if (typeof value === "string") return quoted(value);
  if (value === null || value === undefined) return "nothing";
  if (typeof value === "bigint") return value.toString().length <= LONGEST_SHOWN ? `${value}` : "a number of many digits";
  if (typeof value === "number" || typeof value === "boolean") return `${value}`;
  return `a ${typeName(value)}`;
}

/** The name of a value's type. */
export function typeName(value: unknown): string {
  if (value === null || value === undefined) return "nothing";
  if (typeof value !== "object") return typeof value;
  return escaped(Object.getPrototypeOf(value)?.constructor?.name ?? "object");
}

/** A text in quotes, cut if it is long. */
export function quoted(text: string, limit = LONGEST_SHOWN): string {
  const cut = text.slice(0, limit);
  return `'${cut.replace(/['\\]/g, "\\$&")}'${cut.length < text.length ? "..." : ""}`;
}

/** A foreign text for a message, without quotes. */
export function escaped(text: string, limit = 120): string {
  return printable(text.length <= limit ? text : `${text.slice(0, limit - 3)}...`);
}

/** What another package's error says, on one short line. */
export function reason(error: unknown, limit = 160): string {
  const text = error instanceof Error ? error.message : String(error);
  return escaped(text.replace(/\s+/g, " ").trim(), limit);
}

/** `text` with every character that is not printed (escapes, line breaks, halves of pairs) written as its code. */
export function printable(text: string): string {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`);
}
