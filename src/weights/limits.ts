/**
 * Bounds of the checkpoint readers. A file's counts are believed only below these, so that a
 * corrupt or hostile header cannot make the process allocate, loop or open files without end.
 */

/** Real models have 20 to 60 keys; a key takes 13 bytes or more, so this also bounds time. */
export const MAX_METADATA_KEYS = 65_536
/** The format's own bound on a key's length. */
export const MAX_KEY_BYTES = 65_535
/** The largest strings in use are embedded tokenizer.json files, up to 20 MB. */
export const MAX_STRING_BYTES = 64 * 1024 * 1024
/**
 * Merge lists are the longest arrays in use: half a million entries with the largest vocabularies.
 */
export const MAX_ARRAY_LENGTH = 4_194_304
/** Stored one expert at a time, the largest models have some 50 000 tensors. */
export const MAX_TENSORS = 262_144
/** ggml allows 63 bytes; the longest name of a converted model seen in the wild had 97. */
export const MAX_TENSOR_NAME_BYTES = 255
/** GGML_MAX_DIMS. */
export const MAX_GGUF_DIMS = 4
/** Counts above 2^53 - 1 are no longer exact as numbers; no file is that large. */
export const MAX_ELEMENTS = Number.MAX_SAFE_INTEGER
/** Tensors are aligned for mapping; an alignment above a huge page is a corrupt value. */
export const MAX_ALIGNMENT = 2 * 1024 * 1024
/** Header and tensor table together: ten times the largest known. */
export const MAX_GGUF_HEADER_BYTES = 512 * 1024 * 1024
/** Every shard is an open mapping; the largest models published come in some 200 files. */
export const MAX_SHARDS = 1024
/** The bound of the safetensors format. */
export const MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
/** An index has one line a tensor, about 100 bytes each. */
export const MAX_INDEX_BYTES = 100_000_000
/** PyTorch checkpoints use at most 5; the bound keeps a corrupt header's shapes short. */
export const MAX_SAFETENSORS_DIMS = 8
