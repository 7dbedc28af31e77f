import { expect, test } from "bun:test"

import index from "../../src/web/index.html"

/** What a browser fetches before the page can be used, compressed; maths' fonts and charts come when they are shown. */
const LIMIT_BYTES = 250_000

test("the page is small, and its parts on demand are no part of it", async () => {
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    development: false,
    routes: { "/": index },
    fetch: () => new Response("not found", { status: 404 }),
  })
  try {
    const get = async (path: string): Promise<string> => {
      const response = await fetch(new URL(path, server.url))
      expect(response.status).toBe(200)
      return response.text()
    }
    const html = await get("/")
    const files = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, path]) => path ?? "")
    expect(files.map((path) => path.split(".").at(-1)).sort()).toEqual(["css", "js", "svg"])
    const texts = await Promise.all(files.map(get))
    const all = [html, ...texts]
    const bytes = all.reduce((sum, text) => sum + Bun.gzipSync(text).length, 0)
    expect(bytes).toBeLessThan(LIMIT_BYTES)
    expect(bytes).toBeGreaterThan(20_000)
    // what is fetched later is there
    const later = new Set(
      texts.flatMap((text) => text.match(/(?<=")\/[\w.-]+\.(?:woff2|min-\w+\.js)(?=")/g)),
    )
    expect([...later].filter((path) => path?.endsWith("woff2"))).toHaveLength(20)
    expect([...later].filter((path) => path?.endsWith("js"))).toHaveLength(1)
    for (const path of later) await get(path ?? "")
  } finally {
    await server.stop(true)
  }
})

test("no script and no handler is inline", async () => {
  const html = await Bun.file(new URL("../../src/web/index.html", import.meta.url)).text()
  expect(html).toMatch(/default-src 'none'; script-src 'self';/)
  expect(html).not.toMatch(/<script(?![^>]*\bsrc=)|\son\w+=/)
})
