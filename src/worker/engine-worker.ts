import type { MessagePort } from "node:worker_threads"

import type { EngineConfig } from "../config.ts"
import { engineConfig } from "../config.ts"
import { Engine } from "../engine/engine.ts"
import { serveEngine } from "./serve.ts"

declare const self: Worker

// set before anything is awaited: messages that come before a handler exists are lost
self.onmessage = (event: MessageEvent): void => {
  const { port } = event.data as { port: MessagePort }
  serveEngine(port, (options, hooks) =>
    Engine.create(engineConfig(options as Partial<Record<keyof EngineConfig, unknown>>), hooks),
  )
}
