/** An array value: strings, numbers (any element width) or booleans (stored as 0 and 1). */
export type GgufArray =
  | readonly string[]
  | readonly boolean[]
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array

/** One metadata value. 64-bit integers are bigint, all narrower ones and floats are number. */
export type GgufValue = number | bigint | boolean | string | GgufArray

/** The key-value section of a GGUF file, in file order. */
export type GgufMetadata = ReadonlyMap<string, GgufValue>
