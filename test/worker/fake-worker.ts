import type { MessagePort } from "node:worker_threads"

import { MemoryError } from "../../src/errors.ts"
import type { EngineInfo } from "../../src/worker/protocol.ts"
import { serveEngine } from "../../src/worker/serve.ts"
import { fakeEngine, VOCAB } from "../engine/fake-runner.ts"

/** A Worker with the real protocol, scheduler and pages around a model that costs `stepMs` a step. */
declare const self: Worker

self.onmessage = (event: MessageEvent): void => {
  serveEngine((event.data as { port: MessagePort }).port, async (options, hooks) => {
    hooks.onProgress("weights", 0, 10)
    await Bun.sleep(5)
    hooks.onProgress("weights", 10, 10)
    hooks.onLog("warning", "scalar kernels")
    if (options["fail"]) throw new MemoryError("not enough memory", { hint: "--ctx 8 fits" })
    let dies = false
    const { core, runner } = fakeEngine({
      pages: 4096,
      pageSize: 4,
      maxBatchSize: 4,
      maxBatchTokens: 16,
      contextLength: 100_000,
      prefixCache: true,
    })
    const info: EngineInfo = {
      modelPath: "fake",
      architecture: "fake",
      parameters: 0,
      weightBytes: 0,
      quantization: "F32",
      vocabSize: VOCAB,
      contextLength: 4096,
      trainedContextLength: 4096,
      maxBatchSize: 4,
      kvCacheTokens: 4096,
      kvCacheBytes: 0,
      draftBytes: 0,
      cacheRamBytes: 0,
      threads: 1,
      numaNodes: 1,
      isa: "scalar",
      device: "cpu",
      precision: "fast",
      loadMs: 0,
    }
    return {
      info,
      streamIntervalMs: Number(options["streamIntervalMs"] ?? 0),
      get hasWork() {
        return core.hasWork
      },
      add(id, ids, params) {
        dies ||= params.seed === 666
        if (params.seed === 667) throw new TypeError("no such thing")
        runner.failNext = params.seed === 668
        core.add(id, ids, params)
      },
      pool: (id, ids, params) => core.pool(id, ids, params),
      setVocabulary: () => {},
      grammar: () => Promise.reject(new TypeError("no grammars here")),
      abort: (id) => core.abort(id),
      abortAll: () => core.abortAll(),
      step() {
        if (dies) process.exit(3)
        Bun.sleepSync(Number(options["stepMs"] ?? 0))
        return core.step()
      },
      stats: () => core.stats(),
      details: () => ({ modules: [], experts: [] }),
      prefix: () => {
        throw new TypeError("no prefixes here")
      },
      clearCache: () => core.clearCache(),
      [Symbol.dispose]: () => hooks.onLog("info", "disposed"),
    }
  })
}
