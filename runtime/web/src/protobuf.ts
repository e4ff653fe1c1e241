/** As much of the protobuf wire format as a graph file takes, read and written: a message is a run of members, each a number, a form, content. */

export const VARINT = 0;
const FIXED64 = 1;
export const BYTES = 2;
const FIXED32 = 5;

/** A message, or a part of one. */
export class Message {
  constructor(
    readonly data: Uint8Array,
    readonly start = 0,
    readonly end = data.length,
  ) {}

  /** The bytes themselves, a view. */
  get bytes(): Uint8Array {
    return this.data.subarray(this.start, this.end);
  }

  /** As text; what is no UTF-8 becomes U+FFFD. */
  get text(): string {
    return new TextDecoder().decode(this.bytes);
  }

  /** Number, form and content of each member, and the whole as it lies there; SyntaxError for what is no protobuf message. */
  *members(): Generator<{ number: number; form: number; content: Message; whole: Uint8Array }> {
    let at = this.start;
    while (at < this.end) {
      const [tag, begin] = varint(this.data, at, this.end);
      const form = tag % 8;
      const [start, end] = this.#span(form, begin);
      if (end > this.end || tag < 8) throw new SyntaxError("something that is no ONNX");
      const content = new Message(this.data, start, end);
      yield { number: Math.floor(tag / 8), form, content, whole: this.data.subarray(at, end) };
      at = end;
    }
  }

  /** The members of one number that are bytes and hold `word`. */
  *children(number: number, word: Uint8Array = NOTHING): Generator<Message> {
    for (const member of this.members()) {
      if (member.number === number && member.form === BYTES && member.content.holds(word)) yield member.content;
    }
  }

  /** Repeated integers, packed or one by one. */
  *integers(number: number): Generator<number> {
    for (const { number: got, form, content } of this.members()) {
      if (got !== number || (form !== VARINT && form !== BYTES)) continue;
      for (let at = content.start; at < content.end; ) {
        const [value, next] = varint(this.data, at, content.end);
        yield value;
        at = next;
      }
    }
  }

  /** Whether a word lies in it. */
  holds(word: Uint8Array): boolean {
    return word.length === 0 || indexOf(this.bytes, word) >= 0;
  }

  #span(form: number, begin: number): [start: number, end: number] {
    if (form === VARINT) return [begin, varint(this.data, begin, this.end)[1]];
    if (form === FIXED32) return [begin, begin + 4];
    if (form === FIXED64) return [begin, begin + 8];
    if (form !== BYTES) throw new SyntaxError("something that is no ONNX");
    const [size, start] = varint(this.data, begin, this.end);
    return [start, start + size];
  }
}

const NOTHING = new Uint8Array();

/** A variable-length integer, which a double holds inexactly above 2^53, and where it ends. */
function varint(data: Uint8Array, start: number, end: number): [value: number, end: number] {
  let value = 0;
  for (let at = start; at < end && at < start + 10; at++) {
    const byte = data[at] as number;
    value += (byte & 0x7f) * 2 ** (7 * (at - start));
    if (byte < 0x80) return [value, at + 1];
  }
  throw new SyntaxError("something that is no ONNX");
}

/** Where a word begins, from `from` on; -1 for nowhere. */
export function indexOf(data: Uint8Array, word: Uint8Array, from = 0): number {
  const first = word[0] as number;
  for (let at = data.indexOf(first, from); at >= 0; at = data.indexOf(first, at + 1)) {
    if (word.every((byte, i) => data[at + i] === byte)) return at;
  }
  return -1;
}

/** A member of text, bytes or the parts of a message, as it is written: in parts too. */
export function member(field: number, content: string | Uint8Array | readonly Uint8Array[]): Uint8Array[] {
  const parts = typeof content === "string" ? [new TextEncoder().encode(content)] : [content].flat();
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  return [written(field * 8 + BYTES), written(size), ...parts];
}

/** A member that is a whole number of 0 or more. */
export function number(field: number, value: number): Uint8Array[] {
  return [written(field * 8 + VARINT), written(value)];
}

/** A variable-length integer. */
function written(value: number): Uint8Array {
  const bytes: number[] = [];
  for (; value > 0x7f; value = Math.floor(value / 128)) bytes.push((value % 128) | 0x80);
  return Uint8Array.from([...bytes, value]);
}
