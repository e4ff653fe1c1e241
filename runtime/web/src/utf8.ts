/**
 * UTF-8 to text, byte by byte; U+FFFD for each longest beginning of a character that goes wrong, as Unicode recommends and
 * Python does. Written out because a streaming TextDecoder strips byte order marks and differs between engines.
 */

const UNKNOWN = "\ufffd";

/** For each first byte: how many follow, and the range of the second, which is narrower for some. */
function expected(first: number): [following: number, low: number, high: number] | null {
  if (first >= 0xc2 && first <= 0xdf) return [1, 0x80, 0xbf];
  if (first === 0xe0) return [2, 0xa0, 0xbf];
  if (first === 0xed) return [2, 0x80, 0x9f];
  if (first >= 0xe1 && first <= 0xef) return [2, 0x80, 0xbf];
  if (first === 0xf0) return [3, 0x90, 0xbf];
  if (first >= 0xf1 && first <= 0xf3) return [3, 0x80, 0xbf];
  if (first === 0xf4) return [3, 0x80, 0x8f];
  return null;
}

/** Holds at most three bytes. */
export class Utf8Decoder {
  #code = 0;
  #following = 0;
  #low = 0x80;
  #high = 0xbf;

  /** Text of the characters that are complete now. */
  push(bytes: Iterable<number>): string {
    let text = "";
    for (const byte of bytes) text += this.#one(byte);
    return text;
  }

  /** An incomplete character as U+FFFD. */
  flush(): string {
    const text = this.#following ? UNKNOWN : "";
    this.#following = 0;
    return text;
  }

  #one(byte: number): string {
    if (!this.#following) return this.#begin(byte);
    if (byte < this.#low || byte > this.#high) {
      this.#following = 0;
      return UNKNOWN + this.#begin(byte);
    }
    this.#low = 0x80;
    this.#high = 0xbf;
    this.#code = (this.#code << 6) | (byte & 0x3f);
    return --this.#following ? "" : String.fromCodePoint(this.#code);
  }

  #begin(byte: number): string {
    if (byte < 0x80) return String.fromCharCode(byte);
    const found = expected(byte);
    if (!found) return UNKNOWN;
    [this.#following, this.#low, this.#high] = found;
    this.#code = byte & (0x3f >> found[0]);
    return "";
  }
}
