/** What crosses a worker's border. */

/** What both ends of a message port have. */
export interface Port {
  postMessage(message: unknown): void;
  addEventListener(type: "message" | "error", listener: (event: MessageEvent) => void): void;
}

/**
 * A call: on which object (0: the package itself), by what name, with what. `listens` names a signal and functions in its
 * options, which stay on the page; what they say crosses until the call has `ended`.
 */
export interface Call {
  readonly call: number;
  readonly object: number;
  readonly method: string;
  readonly words: readonly unknown[];
  readonly options: Readonly<Record<string, unknown>>;
  readonly listens: readonly string[];
}

/** From the page. */
export type Request = Call | { readonly abort: number } | { readonly release: number };

/** From the worker. */
export type Reply =
  | { readonly call: number; readonly value: unknown }
  | { readonly call: number; readonly error: { readonly name: string; readonly message: string } }
  | { readonly call: number; readonly told: string; readonly words: readonly number[] }
  | { readonly call: number; readonly ended: true };

/** A new object of the worker's: its number, and what is known of it. */
export interface Handle {
  readonly handle: number;
  readonly facts: Readonly<Record<string, number>>;
}

/** Options that are functions. */
export const FUNCTIONS = ["onProgress", "onPrompt"];
