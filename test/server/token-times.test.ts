import { expect, test } from "bun:test"

import { Registry } from "prom-client"

import { TokenTimes } from "../../src/server/token-times.ts"

test("tokens are counted by how long they took, for each model", async () => {
  const registry = new Registry()
  const times = new TokenTimes({
    name: "t_seconds",
    help: "time",
    buckets: [0.01, 0.1],
    registers: [registry],
  })
  const a = times.of("a")
  times.add(a, 3, 0.01)
  times.add(a, 1, 0.02)
  times.add(a, 2, 5)
  times.add(times.of("b"), 1, 0.5)
  expect(times.of("a")).toBe(a)
  expect((await registry.metrics()).trim().split("\n")).toEqual([
    "# HELP t_seconds time",
    "# TYPE t_seconds histogram",
    't_seconds_bucket{le="0.01",model_name="a"} 3',
    't_seconds_bucket{le="0.1",model_name="a"} 4',
    't_seconds_bucket{le="+Inf",model_name="a"} 6',
    't_seconds_sum{model_name="a"} 10.05',
    't_seconds_count{model_name="a"} 6',
    't_seconds_bucket{le="0.01",model_name="b"} 0',
    't_seconds_bucket{le="0.1",model_name="b"} 0',
    't_seconds_bucket{le="+Inf",model_name="b"} 1',
    't_seconds_sum{model_name="b"} 0.5',
    't_seconds_count{model_name="b"} 1',
  ])
  expect(JSON.stringify(await registry.getMetricsAsJSON())).toContain('"le":"+Inf"')
})
