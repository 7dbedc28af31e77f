import { type CallBody, closeAfter, type PartialCall } from "./answer.ts"

/** Reads Python's and Gemma's ways of writing values; a call is passed on when it is complete. */
class Literals {
  readonly text: string
  position = 0

  constructor(text: string) {
    this.text = text
  }

  get isAtEnd(): boolean {
    return this.position >= this.text.length
  }

  space(): void {
    while (/\s/.test(this.text[this.position] ?? "")) this.position++
  }

  /** True, and past it, where the text goes on with `sign`. */
  take(sign: string): boolean {
    this.space()
    if (!this.text.startsWith(sign, this.position)) return false
    this.position += sign.length
    return true
  }

  expect(sign: string): void {
    if (!this.take(sign)) throw new SyntaxError(`expected ${sign}`)
  }

  match(pattern: RegExp): string | undefined {
    this.space()
    const found = pattern.exec(this.text.slice(this.position))
    if (found === null || found.index !== 0) return undefined
    this.position += found[0].length
    return found[0]
  }

  value(): unknown {
    this.space()
    if (this.take('<|"|>')) return this.until('<|"|>')
    const quote = this.text[this.position]
    if (quote === '"' || quote === "'") return this.string(quote)
    if (this.take("[")) return this.list("]")
    if (this.take("(")) return this.list(")")
    if (this.take("{")) return this.object()
    const word = this.match(/^[\w.+-]+/)
    if (word === undefined) throw new SyntaxError("expected a value")
    const named: Record<string, unknown> = {
      True: true,
      true: true,
      False: false,
      false: false,
      None: null,
      null: null,
    }
    if (word in named) return named[word]
    const number = Number(word.replaceAll("_", ""))
    return Number.isNaN(number) ? word : number
  }

  until(end: string): string {
    const at = this.text.indexOf(end, this.position)
    if (at < 0) throw new SyntaxError("the string has no end")
    const text = this.text.slice(this.position, at)
    this.position = at + end.length
    return text
  }

  string(quote: string): string {
    const triple = quote.repeat(3)
    if (this.take(triple)) return this.until(triple)
    let out = ""
    for (this.position++; !this.isAtEnd; this.position++) {
      const c = this.text[this.position] as string
      if (c === quote) {
        this.position++
        return out
      }
      if (c !== "\\") out += c
      else out += this.escape()
    }
    throw new SyntaxError("the string has no end")
  }

  escape(): string {
    const c = this.text[++this.position] ?? ""
    const plain: Record<string, string> = { n: "\n", t: "\t", r: "\r", "0": "\0" }
    const digits = { x: 2, u: 4, U: 8 }[c]
    if (digits === undefined) return plain[c] ?? c
    const code = Number.parseInt(this.text.slice(this.position + 1, this.position + 1 + digits), 16)
    this.position += digits
    return String.fromCodePoint(code)
  }

  list(end: string): unknown[] {
    const out: unknown[] = []
    while (!this.take(end)) {
      out.push(this.value())
      if (!this.take(",")) {
        this.expect(end)
        break
      }
    }
    return out
  }

  object(): Record<string, unknown> {
    const out: Record<string, unknown> = {}
    while (!this.take("}")) {
      const key = this.match(/^[\w.-]+(?=\s*:)/) ?? String(this.value())
      this.expect(":")
      out[key] = this.value()
      if (!this.take(",")) {
        this.expect("}")
        break
      }
    }
    return out
  }
}

/** `[f(a=1, b="x"), g()]` */
export function readPython(body: string, isEnd: boolean, close: string): CallBody {
  const text = new Literals(body)
  const calls: PartialCall[] = []
  let good = 0
  try {
    text.take("[")
    for (;;) {
      const name = text.match(/^[A-Za-z_][\w.]*/)
      if (name === undefined) break
      text.expect("(")
      const args: Record<string, unknown> = {}
      while (!text.take(")")) {
        const key = text.match(/^[A-Za-z_]\w*(?=\s*=)/)
        if (key === undefined) throw new SyntaxError("expected an argument's name")
        text.expect("=")
        args[key] = text.value()
        if (!text.take(",")) {
          text.expect(")")
          break
        }
      }
      calls.push({ name, id: undefined, arguments: JSON.stringify(args) })
      good = text.position
      text.take(",")
    }
    text.expect("]")
    return { calls, end: closeAfter(body, text.position, close, isEnd) }
  } catch {
    const end = close === "" ? -1 : closeAfter(body, good, close, isEnd)
    return { calls, end: isEnd ? body.length : end }
  }
}

/** `call:f{a:1,b:<|"|>x<|"|>}` */
export function readGemma(body: string, isEnd: boolean, close: string): CallBody {
  const text = new Literals(body)
  try {
    text.expect("call:")
    const name = text.match(/^[\w.-]+/)
    text.expect("{")
    const args = text.object()
    const calls = [{ name, id: undefined, arguments: JSON.stringify(args) }]
    return { calls, end: closeAfter(body, text.position, close, isEnd) }
  } catch {
    const ends = body.includes(close)
    return { calls: [], end: ends ? body.indexOf(close) + close.length : isEnd ? body.length : -1 }
  }
}
