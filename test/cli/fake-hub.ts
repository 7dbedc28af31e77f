import { createHash } from "node:crypto"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"

/** How the hub treats a file, one entry per transfer; the last one holds on. */
export type Behaviour =
  | "whole"
  /** The connection ends after half of what was asked for. */
  | "cut"
  /** Answers a range with the whole file. */
  | "ignore-range"
  | "corrupt"

export interface FakeFile {
  readonly path: string
  readonly bytes: Uint8Array<ArrayBuffer>
  readonly lfs?: boolean
  readonly behaviour?: readonly Behaviour[]
}

export interface SeenRequest {
  readonly host: "hub" | "storage"
  readonly path: string
  readonly range: string | null
  readonly authorization: string | null
}

export interface FakeHub extends AsyncDisposable {
  readonly url: string
  readonly seen: SeenRequest[]
}

export interface HubOptions {
  readonly token?: string
  readonly files: readonly FakeFile[]
}

interface Sent {
  readonly status: number
  readonly headers: Record<string, string>
  readonly body: Uint8Array<ArrayBuffer>
  /** The connection ends after this body, which is not all that was announced. */
  readonly isCut: boolean
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex")
}

/**
 * Hugging Face's hub for one repository, "org/model", on this machine: tree listing, resolve with its X-Linked headers,
 * and large files on a storage host of their own behind a redirect.
 */
export async function startFakeHub({ token, files }: HubOptions): Promise<FakeHub> {
  const seen: SeenRequest[] = []
  const transfers = new Map<string, number>()
  const note = (
    host: SeenRequest["host"],
    path: string,
    header: (name: string) => string | null,
  ): void => {
    seen.push({ host, path, range: header("range"), authorization: header("authorization") })
  }
  const send = (file: FakeFile, asked: string | null): Sent => {
    const count = transfers.get(file.path) ?? 0
    transfers.set(file.path, count + 1)
    const behaviours = file.behaviour ?? ["whole"]
    const behaviour = behaviours[Math.min(count, behaviours.length - 1)]!
    const range = /^bytes=(\d+)-$/.exec(asked ?? "")
    const start = range === null || behaviour === "ignore-range" ? 0 : Number(range[1])
    const total = file.bytes.length
    if (start >= total) return { status: 416, headers: {}, body: new Uint8Array(0), isCut: false }
    const body = file.bytes.slice(start)
    if (behaviour === "corrupt") body[body.length - 1]! ^= 1
    const headers = {
      etag: `"${sha256(file.bytes).slice(0, 32)}"`,
      "content-length": String(body.length),
      ...(start > 0 ? { "content-range": `bytes ${start}-${total - 1}/${total}` } : {}),
    }
    const status = start > 0 ? 206 : 200
    const end = behaviour === "cut" ? Math.ceil(body.length / 2) : body.length
    return { status, headers, body: body.subarray(0, end), isCut: behaviour === "cut" }
  }

  const storage = createServer((request, response) => {
    const url = request.url ?? "/"
    const header = (name: string): string | null => (request.headers[name] as string) ?? null
    note("storage", url, header)
    const file = files.find(({ path }) => url === `/${sha256(Buffer.from(path))}`)
    if (file === undefined) return void response.writeHead(404).end()
    const { status, headers, body, isCut } = send(file, header("range"))
    response.writeHead(status, headers)
    if (isCut) response.write(body, () => setTimeout(() => request.socket.destroy(), 20))
    else response.end(body)
  })
  await new Promise<void>((resolve) => storage.listen(0, "127.0.0.1", resolve))
  const { port } = storage.address() as AddressInfo
  const hub = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request) {
      const { pathname } = new URL(request.url)
      note("hub", pathname, (name) => request.headers.get(name))
      if (token !== undefined && request.headers.get("authorization") !== `Bearer ${token}`)
        return Response.json({ error: "Invalid credentials" }, { status: 401 })
      if (pathname === "/api/models/org/model/tree/main") {
        return Response.json(
          files.map(({ path, bytes, lfs }) => ({
            type: "file",
            oid: "0".repeat(40),
            size: bytes.length,
            path,
            ...(lfs ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 134 } } : {}),
          })),
        )
      }
      const file = files.find(({ path }) => pathname === `/org/model/resolve/main/${path}`)
      if (file === undefined)
        return Response.json({ error: "Repository not found" }, { status: 404 })
      if (!file.lfs) {
        const { body, ...init } = send(file, request.headers.get("range"))
        return new Response(body, init)
      }
      return new Response(null, {
        status: 302,
        headers: {
          location: `http://127.0.0.1:${port}/${sha256(Buffer.from(file.path))}`,
          "x-linked-etag": `"${sha256(file.bytes)}"`,
          "x-linked-size": String(file.bytes.length),
        },
      })
    },
  })
  return {
    url: `http://127.0.0.1:${hub.port}`,
    seen,
    async [Symbol.asyncDispose]() {
      await hub.stop(true)
      storage.closeAllConnections()
      await new Promise((resolve) => storage.close(resolve))
    },
  }
}
