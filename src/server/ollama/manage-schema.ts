import { z } from "@hono/zod-openapi"

import { accepted, refused } from "../schema.ts"
import { optionsSchema } from "./schema.ts"

export { errorSchema } from "./schema.ts"

const MAX_TEXT = 4 * 1024 * 1024

const named = {
  model: z.string().nullish().openapi({ description: "The model's name" }),
  name: z.string().nullish().openapi({ description: "Older name of model" }),
}

export const createRequestSchema = z
  .strictObject({
    ...named,
    from: z.string().nullish().openapi({ description: "A model that is here" }),
    files: z
      .record(z.string(), z.string())
      .refine((files) => Object.keys(files).length <= 1000, "at most 1000 files")
      .nullish()
      .openapi({
        description:
          "Digests of blobs by file name: a GGUF, or safetensors with what belongs to them",
      }),
    adapters: refused(
      "adapters are not supported: merge them into the weights",
      (v) => typeof v === "object" && v !== null && Object.keys(v).length === 0,
    ),
    template: z
      .string()
      .max(MAX_TEXT)
      .nullish()
      .openapi({ description: "Jinja, as in the models' own files; not Ollama's Go templates" }),
    system: z.string().max(MAX_TEXT).nullish(),
    parameters: optionsSchema.nullish(),
    messages: z
      .array(
        z.looseObject({
          role: z.enum(["system", "user", "assistant"]),
          content: z.string().nullish(),
        }),
      )
      .max(10_000)
      .nullish()
      .openapi({ description: "They come before each conversation" }),
    license: z.union([z.string(), z.array(z.string())]).nullish(),
    quantize: z.string().nullish().openapi({ description: "A file type, such as q4_K_M" }),
    quantization: refused("its name is quantize", (v) => v === ""),
    modelfile: refused("send its fields: from, system, parameters and so on", (v) => v === ""),
    path: refused("no route reads a path of the server's", (v) => v === ""),
    stream: z.boolean().nullish(),
    insecure: accepted("nothing is fetched"),
  })
  .openapi("OllamaCreateRequest")

export const pullRequestSchema = z
  .strictObject({
    ...named,
    stream: z.boolean().nullish(),
    insecure: accepted("the hub is asked as HF_ENDPOINT says"),
    username: accepted("HF_TOKEN is what is sent"),
    password: accepted("HF_TOKEN is what is sent"),
  })
  .openapi("OllamaPullRequest")

export const copyRequestSchema = z
  .strictObject({ source: z.string().min(1), destination: z.string().min(1) })
  .openapi("OllamaCopyRequest")

export const progressSchema = z
  .object({
    status: z.string(),
    digest: z.string().optional(),
    total: z.int().optional(),
    completed: z.int().optional(),
  })
  .openapi("OllamaProgress")
