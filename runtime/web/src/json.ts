/**
 * JSON as the standard has it: UTF-8, no NaN, no key twice, bounded depth. JSON.parse takes the last of two equal keys and
 * does not tell 64 from 64.0, where two readers of one document must agree on what it says.
 *
 * An integer is a `number`, or a `bigint` beyond what a number holds exactly; a number with a fraction or an exponent is a
 * `Fraction`. Objects are Maps: a key may be `__proto__`.
 */

/** A number that was written with a fraction or an exponent. */
export class Fraction {
  constructor(readonly value: number) {}
}

export type Json = null | boolean | number | bigint | string | Fraction | Json[] | JsonObject;
export type JsonObject = Map<string, Json>;

const DEEPEST = 200;
const MOST_DIGITS = 4300;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const BLANK = /[ \t\n\r]*/y;
const HEX = /[0-9a-fA-F]{4}/y;
const ESCAPES: Record<string, string> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

/** A document; SyntaxError, or TypeError for bytes that are not UTF-8, says that it is none. */
export function parseDocument(content: Uint8Array | string): Json {
  const text =
    typeof content === "string" ? content : new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  return new Parser(text).document();
}

class Parser {
  #at = 0;

  constructor(readonly text: string) {}

  document(): Json {
    const value = this.#value(DEEPEST);
    this.#match(BLANK);
    if (this.#at !== this.text.length) throw new SyntaxError("more than one value");
    return value;
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.text);
    if (found) this.#at += found[0].length;
    return found;
  }

  #take(word: string): boolean {
    const here = this.text.startsWith(word, this.#at);
    if (here) this.#at += word.length;
    return here;
  }

  #expect(word: string): void {
    if (!this.#take(word)) throw new SyntaxError(`no ${word}`);
  }

  #value(depth: number): Json {
    if (!depth) throw new SyntaxError("too deep");
    this.#match(BLANK);
    if (this.#take("{")) return this.#object(depth - 1);
    if (this.#take("[")) return this.#array(depth - 1);
    if (this.#take('"')) return this.#string();
    if (this.#take("null")) return null;
    if (this.#take("true")) return true;
    if (this.#take("false")) return false;
    return this.#number();
  }

  #number(): Json {
    const found = this.#match(NUMBER);
    if (!found) throw new SyntaxError("no value");
    const digits = found[0];
    if (found[1] !== undefined || found[2] !== undefined) return new Fraction(Number(digits));
    if (digits.length > MOST_DIGITS) throw new SyntaxError("a number of many digits");
    const value = Number(digits);
    return Number.isSafeInteger(value) ? value + 0 : BigInt(digits);
  }

  #string(): string {
    let text = "";
    for (;;) {
      text += this.#match(PLAIN)?.[0] ?? "";
      if (this.#take('"')) return text;
      this.#expect("\\");
      const letter = this.text.charAt(this.#at++);
      if (letter === "u") {
        const code = this.#match(HEX);
        if (!code) throw new SyntaxError("no code");
        text += String.fromCharCode(Number.parseInt(code[0], 16));
      } else {
        const character = ESCAPES[letter];
        if (character === undefined) throw new SyntaxError("no escape");
        text += character;
      }
    }
  }

  #array(depth: number): Json[] {
    const values: Json[] = [];
    this.#match(BLANK);
    if (this.#take("]")) return values;
    for (;;) {
      values.push(this.#value(depth));
      this.#match(BLANK);
      if (this.#take("]")) return values;
      this.#expect(",");
    }
  }

  #object(depth: number): JsonObject {
    const members: JsonObject = new Map();
    this.#match(BLANK);
    if (this.#take("}")) return members;
    for (;;) {
      this.#match(BLANK);
      this.#expect('"');
      const key = this.#string();
      if (members.has(key)) throw new SyntaxError("a key twice");
      this.#match(BLANK);
      this.#expect(":");
      members.set(key, this.#value(depth));
      this.#match(BLANK);
      if (this.#take("}")) return members;
      this.#expect(",");
    }
  }
}
