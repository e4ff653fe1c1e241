/** The worker's side: objects by number, and calls on them answered. */

import { InputError } from "./errors.js";
import { type LoadOptions, load } from "./loading.js";
import { Model } from "./model.js";
import { Session } from "./session.js";
import type { SnapshotDtype } from "./snapshot.js";
import { streamText } from "./text.js";
import type { Call, Handle, Port, Reply, Request } from "./workerMessages.js";

/** A stream, and the call that began it. */
interface Stream {
  readonly events: AsyncGenerator<unknown, void, undefined>;
  readonly call: number;
}

/** Answer the calls of a page, in a worker's script; `defaults` are options of every load there, as the modules it imported. */
export function serve(defaults: LoadOptions = {}, port: Port = globalThis as unknown as Port): void {
  const server = new Server(defaults, port);
  port.addEventListener("message", (event) => server.receive(event.data));
  (port as { start?: () => void }).start?.(); // a MessagePort waits for it
}

class Server {
  readonly #objects = new Map<number, unknown>();
  readonly #aborts = new Map<number, AbortController>();
  #last = 0;

  constructor(
    readonly defaults: LoadOptions,
    readonly port: Port,
  ) {}

  receive(message: Request): void {
    if ("abort" in message) this.#aborts.get(message.abort)?.abort();
    else if ("release" in message) this.#objects.delete(message.release);
    else void this.#answer(message);
  }

  async #answer(call: Call): Promise<void> {
    try {
      const value = await this.#called(call);
      this.port.postMessage({ call: call.call, value } satisfies Reply);
      if (!isStream(call)) this.#ended(call.call);
    } catch (error) {
      this.#ended(call.call);
      const { name, message } = error instanceof Error ? error : { name: "Error", message: String(error) };
      this.port.postMessage({ call: call.call, error: { name, message } } satisfies Reply);
    }
  }

  async #called(call: Call): Promise<unknown> {
    const { object, method, words } = call;
    if (object === 0) {
      return this.#handle(await load(words[0] as string, { ...this.defaults, ...(this.#options(call) as LoadOptions) }));
    }
    const target = this.#objects.get(object);
    if (target instanceof Model) return this.#ofModel(target, method, words);
    if (target instanceof Session) return this.#ofSession(target, method, words, call);
    if (target === undefined) throw new InputError("expected an object of the worker, got one that was disposed; make another");
    return this.#ofStream(target as Stream, method, object);
  }

  async #ofStream({ events, call }: Stream, method: string, object: number): Promise<unknown> {
    let ended = true; // so does one that throws
    try {
      const result = method === "next" ? await events.next() : await events.return();
      ended = result.done === true;
      return result;
    } finally {
      if (ended) {
        this.#objects.delete(object);
        this.#ended(call);
      }
    }
  }

  /** Nothing more is said to a call, nor by it. */
  #ended(call: number): void {
    this.#aborts.delete(call);
    this.port.postMessage({ call, ended: true } satisfies Reply);
  }

  async #ofModel(model: Model, method: string, words: readonly unknown[]): Promise<unknown> {
    if (method === "session") return this.#handle(model.session());
    if (method === "encode") return model.encode(words[0] as string, words[1] as { start?: boolean });
    if (method === "decode") return model.decode(words[0] as number[]);
    return model.dispose();
  }

  async #ofSession(session: Session, method: string, words: readonly unknown[], call: Call): Promise<unknown> {
    const options = this.#options(call);
    const [word] = words;
    if (method === "streamText") return this.#handle({ events: streamText(session, word as string, options), call: call.call });
    if (method === "generate") return this.#handle({ events: session.generate(word as number[], options), call: call.call });
    if (method === "step") return { value: await session.step(word as number), tokens: session.tokens };
    if (method === "prefill") return { value: await session.prefill(word as number[]), tokens: session.tokens };
    if (method === "load") return { value: await session.load(word as Uint8Array), tokens: session.tokens };
    if (method === "reset") return { value: await session.reset(), tokens: session.tokens };
    if (method === "save") return session.save(word as { dtype?: SnapshotDtype });
    if (method === "fork") return this.#handle(await session.fork());
    if (method === "tokens") return session.tokens;
    return session.dispose();
  }

  /** Options with a signal and functions that the page hears of. */
  #options(call: Call): Record<string, unknown> {
    const options: Record<string, unknown> = { ...call.options };
    for (const name of call.listens) {
      if (name === "signal") {
        const abort = new AbortController();
        this.#aborts.set(call.call, abort);
        options.signal = abort.signal;
      } else {
        options[name] = (...words: number[]) => this.port.postMessage({ call: call.call, told: name, words } satisfies Reply);
      }
    }
    return options;
  }

  #handle(object: object): Handle {
    this.#objects.set(++this.#last, object);
    const facts: Record<string, number> = {};
    if (object instanceof Model) Object.assign(facts, { vocabSize: object.vocabSize, chunk: object.chunk });
    if (object instanceof Session) Object.assign(facts, { tokens: object.tokens, nbytes: object.nbytes });
    return { handle: this.#last, facts };
  }
}

/** Whether a call begins a stream, which goes on after its answer. */
function isStream(call: Call): boolean {
  return call.method === "streamText" || call.method === "generate";
}
