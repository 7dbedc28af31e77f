/** A failure that the user can understand and act on: one sentence naming the thing, the field and the value. */
export class KtError extends Error {
  override readonly name: string = "KtError"
  /** What would fix it, as a sentence or a command; printed after the message. */
  readonly hint: string | undefined

  constructor(message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.hint = options.hint
  }
}

/** A value given by the user (flag, config key, request field, rule) is wrong. */
export class ConfigError extends KtError {
  override readonly name = "ConfigError"
}

/** The command line itself is wrong: an unknown flag, a missing argument. Exit status 2. */
export class UsageError extends KtError {
  override readonly name = "UsageError"
}

/** A file is missing, truncated, corrupt or of an unknown kind. The message names file, field and value. */
export class FormatError extends KtError {
  override readonly name = "FormatError"
  readonly file: string

  constructor(file: string, detail: string, options: { hint?: string; cause?: unknown } = {}) {
    super(`${file}: ${detail}`, options)
    this.file = file
  }
}

/** A call into a kernel library returned a negative status. */
export class NativeError extends KtError {
  override readonly name = "NativeError"
  readonly op: string
  readonly status: number

  constructor(op: string, status: number, detail: string) {
    super(`${op}: ${detail}`)
    this.op = op
    this.status = status
  }
}

/** Operands of one op live on different devices, or a device is unknown or absent. */
export class DeviceError extends KtError {
  override readonly name = "DeviceError"
}

/** Weights, KV cache and workspaces do not fit into what is free; the message says what would. */
export class MemoryError extends KtError {
  override readonly name = "MemoryError"
}

/** The engine has ended by itself, and with it all that it was doing. */
export class EngineError extends KtError {
  override readonly name = "EngineError"
}

export interface RequestErrorOptions {
  readonly hint?: string
  readonly cause?: unknown
  /** Machine-readable reason, such as "context_length_exceeded". */
  readonly code?: string
  /** The request field at fault. */
  readonly param?: string
  readonly retryAfterSeconds?: number
}

/** A request that the server refuses or cannot finish; each API writes it in its own shape. */
export class RequestError extends KtError {
  override readonly name = "RequestError"
  /** HTTP status. */
  readonly status: number
  readonly code: string | undefined
  readonly param: string | undefined
  readonly retryAfterSeconds: number | undefined

  constructor(status: number, message: string, options: RequestErrorOptions = {}) {
    super(message, options)
    this.status = status
    this.code = options.code
    this.param = options.param
    this.retryAfterSeconds = options.retryAfterSeconds
  }
}
