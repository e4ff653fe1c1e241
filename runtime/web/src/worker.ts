/**
 * The same surface across a worker's border, so that a page stays free while a graph runs.
 *
 *     // worker.js                                   // the page
 *     import { serve } from "xlstm-edge/worker";     import { connect } from "xlstm-edge/worker";
 *     serve();                                       const worker = new Worker("worker.js", { type: "module" });
 *                                                    const { load } = connect(worker);
 *
 * Each call is a message there and one back; a piece of a stream is asked for when the page wants it, so that a session has
 * read exactly what the page has seen. Arrays are copied; signals and functions stay on the page, and what they say crosses.
 */

import type { TokenEvent } from "./generate.js";
import type { LoadOptions } from "./loading.js";
import type { GenerationOptions } from "./options.js";
import type { SnapshotDtype } from "./snapshot.js";
import { type TextEvent, type TextOptions, TextStream } from "./text.js";
import { Client } from "./workerClient.js";
import type { Handle, Port } from "./workerMessages.js";

export type { Port } from "./workerMessages.js";
export { serve } from "./workerServer.js";

/** The package as a worker has it that calls `serve`; one `connect` for a worker. */
export function connect(worker: Port): {
  load: (bundle: string | URL | File[], options?: LoadOptions) => Promise<RemoteModel>;
} {
  const client = new Client(worker);
  return {
    load: async (bundle, options = {}) => {
      const source = bundle instanceof URL ? bundle.href : bundle;
      return new RemoteModel(client, (await client.call(0, "load", [source], options)) as Handle);
    },
  };
}

/** A model in a worker: as `Model`, but every call answers later. */
export class RemoteModel {
  readonly vocabSize: number;
  readonly chunk: number;

  constructor(
    readonly client: Client,
    readonly own: Handle,
  ) {
    this.vocabSize = own.facts.vocabSize as number;
    this.chunk = own.facts.chunk as number;
  }

  async session(): Promise<RemoteSession> {
    return new RemoteSession(this.client, (await this.client.call(this.own.handle, "session")) as Handle);
  }

  /** Text pieces that continue a prompt, from a fresh session; `stream.finish` says how it ended. */
  stream(prompt: string, options: TextOptions = {}): TextStream {
    return new TextStream(this.#events(prompt, options));
  }

  async encode(prompt: string, options: { start?: boolean } = {}): Promise<number[]> {
    return (await this.client.call(this.own.handle, "encode", [prompt, options])) as number[];
  }

  async decode(ids: readonly number[]): Promise<string> {
    return (await this.client.call(this.own.handle, "decode", [ids])) as string;
  }

  async dispose(): Promise<void> {
    await this.client.call(this.own.handle, "dispose");
    this.client.release(this.own.handle);
  }

  async *#events(prompt: string, options: TextOptions): AsyncGenerator<TextEvent, void, undefined> {
    const session = await this.session();
    try {
      yield* session.streamText(prompt, options);
    } finally {
      await session.dispose();
    }
  }
}

/** A session in a worker: as `Session`. Dispose it: the worker keeps it for you until then. */
export class RemoteSession {
  readonly nbytes: number;
  #tokens: number;

  constructor(
    readonly client: Client,
    readonly own: Handle,
  ) {
    this.nbytes = own.facts.nbytes as number;
    this.#tokens = own.facts.tokens as number;
  }

  /** Number of tokens consumed since the zero state, as of the last call that was answered. */
  get tokens(): number {
    return this.#tokens;
  }

  async step(token: number): Promise<Float32Array> {
    return (await this.#moved("step", token)) as Float32Array;
  }

  async prefill(tokens: Iterable<number>): Promise<Float32Array> {
    return (await this.#moved("prefill", [...tokens])) as Float32Array;
  }

  async load(snapshot: Uint8Array | ArrayBuffer): Promise<void> {
    await this.#moved("load", snapshot);
  }

  async reset(): Promise<void> {
    await this.#moved("reset");
  }

  async save(options: { dtype?: SnapshotDtype } = {}): Promise<Uint8Array<ArrayBuffer>> {
    return (await this.client.call(this.own.handle, "save", [options])) as Uint8Array<ArrayBuffer>;
  }

  async fork(): Promise<RemoteSession> {
    return new RemoteSession(this.client, (await this.client.call(this.own.handle, "fork")) as Handle);
  }

  /** Read `text` and continue it: as the package's `streamText`. */
  streamText(text: string, options: TextOptions = {}): AsyncGenerator<TextEvent, void, undefined> {
    return this.#events<TextEvent>("streamText", text, options);
  }

  /** Feed a prompt of ids, then yield Tokens and a Finish. */
  generate(prompt: Iterable<number>, options: GenerationOptions = {}): AsyncGenerator<TokenEvent, void, undefined> {
    return this.#events<TokenEvent>("generate", [...prompt], options);
  }

  async dispose(): Promise<void> {
    await this.client.call(this.own.handle, "dispose");
    this.client.release(this.own.handle);
  }

  async #moved(method: string, ...words: unknown[]): Promise<unknown> {
    const { value, tokens } = (await this.client.call(this.own.handle, method, words)) as { value: unknown; tokens: number };
    this.#tokens = tokens;
    return value;
  }

  async *#events<Event>(method: string, word: unknown, options: object): AsyncGenerator<Event, void, undefined> {
    const { handle } = (await this.client.call(this.own.handle, method, [word], options)) as Handle;
    let ended = false;
    try {
      while (!ended) {
        const result = (await this.client.call(handle, "next")) as IteratorResult<Event, void>;
        ended = result.done === true;
        if (!result.done) yield result.value;
      }
    } finally {
      if (!ended) await this.client.call(handle, "return").catch(() => undefined);
      this.#tokens = (await this.client.call(this.own.handle, "tokens")) as number;
    }
  }
}
