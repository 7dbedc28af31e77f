import { KT_ABI_MAJOR, KT_ABI_MINOR, layouts } from "../native/abi.generated.ts"
import { F32 } from "../tensor/dtype.ts"
import { Tensor } from "../tensor/tensor.ts"
import { backendOf, descOf, empty, expectShape, putPointer } from "./dispatch.ts"
import { type Activation, ACTIVATIONS } from "./elementwise.ts"

/** act(norm(x) · wgᵀ) · (norm(x) · wuᵀ); normWeight null: x as it is. wg, wu [inter, hidden] → [tokens, inter]. */
export function gateUpAct(
  x: Tensor,
  normWeight: Tensor | null,
  eps: number,
  offset: number,
  wg: Tensor,
  wu: Tensor,
  act: Activation,
  out = empty(x, [x.dim(0), wg.dim(0)]),
): Tensor {
  const backend = backendOf("gateUpAct", x, normWeight, wg, wu, out)
  expectShape("gateUpAct", "wg", wg, [wg.dim(0), x.dim(1)])
  expectShape("gateUpAct", "wu", wu, wg.shape)
  const status = backend.library.kt_gate_up_act(
    backend.ctx,
    x.desc,
    descOf(normWeight),
    eps,
    offset,
    wg.desc,
    wu.desc,
    ACTIVATIONS[act],
    out.desc,
  )
  backend.check(status, "gateUpAct")
  return out
}

export interface QkvOperands {
  /** [tokens, hidden] */
  readonly x: Tensor
  /** [hidden], or null for no norm */
  readonly normWeight: Tensor | null
  readonly eps: number
  readonly normOffset: number
  /** [heads * k_dim, hidden], [kv_heads * k_dim, hidden], [kv_heads * v_dim, hidden] */
  readonly wq: Tensor
  readonly wk: Tensor
  readonly wv: Tensor
  readonly bq: Tensor | null
  readonly bk: Tensor | null
  readonly bv: Tensor | null
  /** Before rope: [k_dim] per head, or [heads * k_dim] and [kv_heads * k_dim] over all heads together, or null */
  readonly qNorm: Tensor | null
  readonly kNorm: Tensor | null
  /** q and k are normed per head with weights of one; qNorm and kNorm are null. */
  readonly unitQkNorm?: boolean
  readonly qkEps: number
  readonly qkNormOffset: number
  /** [tokens, 2n] of ropeTable, or null for no rope */
  readonly ropeTable: Tensor | null
  readonly interleaved: boolean
  readonly slotMapping: Tensor
  readonly kCache: Tensor
  readonly vCache: Tensor
  readonly numHeads: number
}

const ARGS = layouts.kt_qkv_args

/** norm, q/k/v projections, q/k norm, rope, and K and V into the cache. Returns q [tokens, heads, k_dim]. */
export function qkvRopeStore(o: QkvOperands): Tensor {
  const backend = backendOf(
    "qkvRopeStore",
    o.x,
    o.wq,
    o.wk,
    o.wv,
    o.kCache,
    o.vCache,
    o.slotMapping,
    o.ropeTable,
  )
  const q = Tensor.empty(backend, F32, [o.x.dim(0), o.numHeads, o.wq.dim(0) / o.numHeads])
  const { params } = backend
  const { fields } = ARGS
  params.setUint32(fields.struct_size, ARGS.size, true)
  params.setUint32(fields.abi_version, KT_ABI_MAJOR * 65536 + KT_ABI_MINOR, true)
  putPointer(params, fields.x, o.x.desc)
  putPointer(params, fields.norm_weight, descOf(o.normWeight))
  putPointer(params, fields.wq, o.wq.desc)
  putPointer(params, fields.wk, o.wk.desc)
  putPointer(params, fields.wv, o.wv.desc)
  putPointer(params, fields.bq, descOf(o.bq))
  putPointer(params, fields.bk, descOf(o.bk))
  putPointer(params, fields.bv, descOf(o.bv))
  putPointer(params, fields.q_norm, descOf(o.qNorm))
  putPointer(params, fields.k_norm, descOf(o.kNorm))
  putPointer(params, fields.rope_table, descOf(o.ropeTable))
  putPointer(params, fields.slot_mapping, o.slotMapping.desc)
  putPointer(params, fields.k_cache, o.kCache.desc)
  putPointer(params, fields.v_cache, o.vCache.desc)
  putPointer(params, fields.q_out, q.desc)
  params.setFloat32(fields.eps, o.eps, true)
  params.setFloat32(fields.norm_offset, o.normOffset, true)
  params.setFloat32(fields.qk_eps, o.qkEps, true)
  params.setFloat32(fields.qk_norm_offset, o.qkNormOffset, true)
  params.setUint32(fields.interleaved, o.interleaved ? 1 : 0, true)
  params.setUint32(fields.unit_qk_norm, o.unitQkNorm === true ? 1 : 0, true)
  backend.check(
    backend.library.kt_qkv_rope_store(backend.ctx, backend.paramsAddress),
    "qkvRopeStore",
  )
  return q
}
