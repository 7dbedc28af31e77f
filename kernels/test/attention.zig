//! Paged attention of short and long queries against the softmax in double precision.
const std = @import("std");
const support = @import("support.zig");
const c = support.c;
const gpa = support.gpa;

const Case = struct {
    heads: usize = 4,
    kv_heads: usize = 2,
    k_dim: usize = 64,
    v_dim: usize = 64,
    page: usize = 16,
    half: bool = true,
    soft_cap: f32 = 0,
    window: i32 = 0,
    sinks: bool = false,
    /// Tokens of each sequence that are cached before, and new ones.
    cached: []const usize = &.{ 0, 37, 300 },
    new: []const usize = &.{ 1, 1, 1 },
};

const cases = [_]Case{
    .{},
    .{ .half = false },
    .{ .heads = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .page = 4 },
    .{ .heads = 3, .kv_heads = 1, .k_dim = 40, .v_dim = 24 },
    .{ .heads = 14, .kv_heads = 2, .k_dim = 128, .v_dim = 128, .cached = &.{ 511, 3 }, .new = &.{ 1, 2 } },
    .{ .soft_cap = 20, .sinks = true },
    .{ .window = 33 },
    .{ .cached = &.{ 0, 5, 130 }, .new = &.{ 33, 70, 40 } },
    .{ .half = false, .heads = 6, .k_dim = 40, .v_dim = 24, .cached = &.{ 3, 64 }, .new = &.{ 50, 65 } },
    .{ .window = 40, .sinks = true, .soft_cap = 10, .cached = &.{100}, .new = &.{64} },
};

test "paged attention" {
    for (cases, 0..) |case, i| {
        errdefer std.debug.print("case {d}\n", .{i});
        try check(case, 20 + i);
    }
}

/// A value as the cache keeps it.
fn kept(value: f32, half: bool) f32 {
    return if (half) @as(f16, @floatCast(value)) else value;
}

fn check(case: Case, seed: usize) !void {
    var random = support.Random.init(seed);
    const ctx = support.context();
    const sequences = case.cached.len;
    var most_pages: usize = 0;
    var all_pages: usize = 2;
    var tokens: usize = 0;
    var all_tokens: usize = 0;
    for (case.cached, case.new) |cached, new| {
        const pages = (cached + new + case.page - 1) / case.page;
        most_pages = @max(most_pages, pages);
        all_pages += pages;
        tokens += new;
        all_tokens += cached + new;
    }
    // pages from the last to the second; the first holds what nobody may read
    const tables = try gpa.alloc(i32, sequences * most_pages);
    defer gpa.free(tables);
    @memset(tables, 0);
    const slots = try gpa.alloc(i32, all_tokens);
    defer gpa.free(slots);
    const starts = try gpa.alloc(i32, sequences + 1);
    defer gpa.free(starts);
    const seq_lens = try gpa.alloc(i32, sequences);
    defer gpa.free(seq_lens);
    var page: usize = all_pages - 1;
    var slot: usize = 0;
    starts[0] = 0;
    for (0..sequences) |s| {
        const total = case.cached[s] + case.new[s];
        for (0..total) |position| {
            if (position % case.page == 0) {
                tables[s * most_pages + position / case.page] = @intCast(page);
                page -= 1;
            }
            slots[slot] = tables[s * most_pages + position / case.page] * @as(i32, @intCast(case.page)) + @as(i32, @intCast(position % case.page));
            slot += 1;
        }
        starts[s + 1] = starts[s] + @as(i32, @intCast(case.new[s]));
        seq_lens[s] = @intCast(total);
    }
    const k = try random.normals(all_tokens * case.kv_heads * case.k_dim, 1);
    defer gpa.free(k);
    const v = try random.normals(all_tokens * case.kv_heads * case.v_dim, 1);
    defer gpa.free(v);
    const q = try random.normals(tokens * case.heads * case.k_dim, 1.5);
    defer gpa.free(q);
    const sinks = try random.normals(case.heads, 1);
    defer gpa.free(sinks);
    const value_bytes: usize = if (case.half) 2 else 4;
    const k_cache = try gpa.alignedAlloc(u8, .@"64", all_pages * case.kv_heads * case.page * case.k_dim * value_bytes);
    defer gpa.free(k_cache);
    const v_cache = try gpa.alignedAlloc(u8, .@"64", all_pages * case.kv_heads * case.page * case.v_dim * value_bytes);
    defer gpa.free(v_cache);
    @memset(k_cache, 0x7f); // large or not a number
    @memset(v_cache, 0x7f);
    const k_shape = [_]usize{ all_pages, case.kv_heads, case.page, case.k_dim };
    const v_shape = [_]usize{ all_pages, case.kv_heads, case.page, case.v_dim };
    const k_cache_tensor = cacheTensor(k_cache, case.half, &k_shape);
    const v_cache_tensor = cacheTensor(v_cache, case.half, &v_shape);
    const k_tensor = support.floats(k, &.{ all_tokens, case.kv_heads, case.k_dim });
    const v_tensor = support.floats(v, &.{ all_tokens, case.kv_heads, case.v_dim });
    const slots_tensor = support.ints(slots, &.{all_tokens});
    support.ok(c.kt_store_kv(ctx, &k_tensor, &v_tensor, &slots_tensor, &k_cache_tensor, &v_cache_tensor));

    const out = try gpa.alloc(f32, tokens * case.heads * case.v_dim);
    defer gpa.free(out);
    @memset(out, std.math.nan(f32));
    var params = std.mem.zeroes(c.kt_attention_params_t);
    params.struct_size = @sizeOf(c.kt_attention_params_t);
    params.abi_version = c.kt_abi_version();
    params.scale = 0.11;
    params.soft_cap = case.soft_cap;
    params.sliding_window = case.window;
    const q_tensor = support.floats(q, &.{ tokens, case.heads, case.k_dim });
    const out_tensor = support.floats(out, &.{ tokens, case.heads, case.v_dim });
    const tables_tensor = support.ints(tables, &.{ sequences, most_pages });
    const starts_tensor = support.ints(starts, &.{sequences + 1});
    const lens_tensor = support.ints(seq_lens, &.{sequences});
    const sinks_tensor = support.floats(sinks, &.{case.heads});
    support.ok(c.kt_paged_attention(ctx, &q_tensor, &k_cache_tensor, &v_cache_tensor, &tables_tensor, &starts_tensor, &lens_tensor, if (case.sinks) &sinks_tensor else null, &params, &out_tensor));

    const want = try gpa.alloc(f64, out.len);
    defer gpa.free(want);
    @memset(want, 0);
    var first: usize = 0; // of the sequence in k and v
    for (0..sequences) |s| {
        for (0..case.new[s]) |i| {
            const position = case.cached[s] + i;
            const token = @as(usize, @intCast(starts[s])) + i;
            for (0..case.heads) |head| {
                const kv_head = head / (case.heads / case.kv_heads);
                const from = if (case.window > 0 and position + 1 > @as(usize, @intCast(case.window))) position + 1 - @as(usize, @intCast(case.window)) else 0;
                const scores = try gpa.alloc(f64, position + 1 - from);
                defer gpa.free(scores);
                var top: f64 = if (case.sinks) sinks[head] else -1e300;
                for (scores, from..) |*score, key| {
                    score.* = 0;
                    for (0..case.k_dim) |d|
                        score.* += @as(f64, q[(token * case.heads + head) * case.k_dim + d]) * kept(k[((first + key) * case.kv_heads + kv_head) * case.k_dim + d], case.half);
                    score.* *= 0.11;
                    if (case.soft_cap > 0) score.* = case.soft_cap * std.math.tanh(score.* / case.soft_cap);
                    top = @max(top, score.*);
                }
                var sum: f64 = if (case.sinks) @exp(sinks[head] - top) else 0;
                for (scores) |score| sum += @exp(score - top);
                for (scores, from..) |score, key| for (0..case.v_dim) |d| {
                    want[(token * case.heads + head) * case.v_dim + d] += @exp(score - top) / sum * kept(v[((first + key) * case.kv_heads + kv_head) * case.v_dim + d], case.half);
                };
            }
        }
        first += case.cached[s] + case.new[s];
    }
    try support.expectClose(out, want, 3e-6);
}

fn cacheTensor(data: []align(64) u8, half: bool, shape: []const usize) c.kt_tensor_t {
    if (half) return support.halves(@as([*]u16, @ptrCast(data.ptr))[0 .. data.len / 2], c.KT_F16, shape);
    return support.floats(@as([*]f32, @ptrCast(data.ptr))[0 .. data.len / 4], shape);
}
