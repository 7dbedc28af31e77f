import type { EngineInfo, Pooled, PoolParams } from "../../src/worker/protocol.ts"
import { FakeClient } from "../server/fakes.ts"

/** A model made for vectors: a text's is its length and its first byte, its rank that byte's share of 256. */
export class PoolingClient extends FakeClient {
  override readonly info: EngineInfo = {
    ...new FakeClient().info,
    architecture: "bert",
    pooling: { pooling: "mean", generates: false, hasClassifier: true, dimensions: 2 },
  }

  override async pool(ids: Int32Array, params: PoolParams): Promise<Pooled> {
    const byte = ids[params.secondFrom ?? 1] ?? 0
    const values = params.pooling === "rank" ? [byte / 256] : [ids.length, byte]
    const counts = { promptTokens: ids.length, cachedTokens: 0 }
    return { values: Float32Array.from(values), ...counts, queueMs: 0, prefillMs: 1 }
  }
}
