/** The page's side: calls numbered, sent and answered. */

import { ERRORS, InputError, reason, XlstmEdgeError } from "./errors.js";
import { checkListening, givenOptions } from "./given.js";
import { type Call, FUNCTIONS, type Port, type Reply } from "./workerMessages.js";

interface Waiting {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

/** What the options of a call listen to on the page. */
interface Listening {
  readonly functions: Readonly<Record<string, (...words: number[]) => void>>;
  readonly signal: AbortSignal | undefined;
  readonly abort: () => void;
}

export class Client {
  readonly #waiting = new Map<number, Waiting>();
  readonly #listening = new Map<number, Listening>();
  #last = 0;

  constructor(readonly port: Port) {
    port.addEventListener("message", (event) => this.#receive(event.data));
    port.addEventListener("error", () => this.#fail());
    (port as { start?: () => void }).start?.(); // a MessagePort waits for it
  }

  /** What the worker answers; throws what it throws. */
  async call(object: number, method: string, words: readonly unknown[] = [], given: object = {}): Promise<unknown> {
    const call = ++this.#last;
    const { signal, ...others } = this.#checked(given);
    const entries = Object.entries(others);
    const functions = Object.fromEntries(entries.filter(([name]) => FUNCTIONS.includes(name)));
    const options = Object.fromEntries(entries.filter(([name]) => !FUNCTIONS.includes(name)));
    // A function that throws ends its call, as a signal does.
    const listens = [...Object.keys(functions), ...(signal || Object.keys(functions).length ? ["signal"] : [])];
    const message: Call = { call, object, method, words, options, listens };
    const answer = new Promise((resolve, reject) => this.#waiting.set(call, { resolve, reject }));
    this.#send(message);
    if (listens.length) this.#listen(call, functions as Listening["functions"], signal);
    return answer;
  }

  /** Options whose parts that stay here are what they should be; the worker checks the others. */
  #checked(given: object): { signal?: AbortSignal } & Record<string, unknown> {
    const options = givenOptions(given);
    checkListening(options, FUNCTIONS);
    return options as { signal?: AbortSignal } & Record<string, unknown>;
  }

  /** The worker may forget an object. */
  release(handle: number): void {
    this.port.postMessage({ release: handle });
  }

  #send(message: Call): void {
    try {
      this.port.postMessage(message);
    } catch (error) {
      this.#waiting.delete(message.call);
      throw new InputError(`expected options that a worker can be sent, got ${reason(error)}; give modules to serve instead`, {
        cause: error,
      });
    }
  }

  #listen(call: number, functions: Listening["functions"], signal: AbortSignal | undefined): void {
    const abort = () => this.port.postMessage({ abort: call });
    this.#listening.set(call, { functions, signal, abort });
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { once: true });
  }

  #receive(reply: Reply): void {
    const { call } = reply;
    if ("told" in reply) this.#tell(call, reply.told, reply.words);
    else if ("ended" in reply) this.#unlisten(call);
    else if ("value" in reply) this.#answered(call)?.resolve(reply.value);
    else {
      const { name, message } = reply.error;
      const Class = Object.hasOwn(ERRORS, name) ? ERRORS[name as keyof typeof ERRORS] : XlstmEdgeError;
      this.#answered(call)?.reject(new Class(message));
    }
  }

  /** What the app's function throws comes out of its call; out of this listener where the call was answered, as of a stream. */
  #tell(call: number, name: string, words: readonly number[]): void {
    try {
      this.#listening.get(call)?.functions[name]?.(...words);
    } catch (error) {
      this.port.postMessage({ abort: call });
      this.#unlisten(call);
      const waiting = this.#answered(call);
      if (!waiting) throw error;
      waiting.reject(error as Error);
    }
  }

  #answered(call: number): Waiting | undefined {
    const waiting = this.#waiting.get(call);
    this.#waiting.delete(call);
    return waiting;
  }

  #unlisten(call: number): void {
    const listening = this.#listening.get(call);
    listening?.signal?.removeEventListener("abort", listening.abort);
    this.#listening.delete(call);
  }

  #fail(): void {
    const error = new XlstmEdgeError("expected a worker that runs, got an error of its script; look at the browser's console");
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
