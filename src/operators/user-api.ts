import { z } from "zod"

import * as layers from "../nn/layers.ts"
import * as modules from "../nn/module.ts"
import * as ops from "../ops/index.ts"
import { Tensor } from "../tensor/tensor.ts"
import { operators, registerOperator } from "./registry.ts"

/** What operators of a user's own import from "ktransformers"; zod comes along, since kwargs are described with it. */
export const operatorApi: Readonly<Record<string, unknown>> = Object.freeze({
  ...layers,
  ...modules,
  Tensor,
  operators,
  ops,
  registerOperator,
  z,
})

let provided = false

/**
 * Makes `import … from "ktransformers"` in a user's file mean this very program: the file lies anywhere, has no
 * node_modules, and a second copy of the registry would not be the one that rules look into. Works from source and in
 * the compiled binary.
 */
export function provideOperatorApi(): void {
  if (provided) return
  provided = true
  Bun.plugin({
    name: "ktransformers-operator-api",
    setup(build): void {
      build.module("ktransformers", () => ({ exports: operatorApi, loader: "object" }))
    },
  })
}
