//! kt_store_kv, kt_paged_attention: what the pointers depend on is checked, then items go over the pool.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const isa = ctx_mod.isa;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

const max_dim = isa.KT_ATTENTION_MAX_DIM;
/// Heads that read the only kv head together (latent attention has up to 128): more are shared among threads.
const max_group = 16;
const split_keys: usize = isa.KT_ATTENTION_SPLIT;
/// Splits of one item when there are many more than threads.
const max_splits_per_item = 8;

/// The kernels' number of a type that caches may have.
pub fn kindOf(dtype: u32) ?i32 {
    return switch (dtype) {
        c.KT_F32 => 0,
        c.KT_F16 => 1,
        c.KT_Q8_0 => 2,
        else => null,
    };
}

/// Caches [pages, kv_heads, page_size, dim], of the same type and outer dimensions.
fn caches(k_cache: ?*const check.Tensor, v_cache: ?*const check.Tensor) ?[2]*const check.Tensor {
    const tk = check.tensor("k_cache", k_cache, 4) orelse return null;
    const tv = check.tensor("v_cache", v_cache, 4) orelse return null;
    if (kindOf(tk.dtype) == null) {
        _ = status.invalid("k_cache has type {d}, expected F16, F32 or Q8_0", .{tk.dtype});
        return null;
    }
    if (tv.dtype != tk.dtype) {
        _ = status.invalid("v_cache has type {d}, k_cache {d}", .{ tv.dtype, tk.dtype });
        return null;
    }
    for (0..3) |dim| if (!check.size("v_cache", tv, dim, tk.shape[dim])) return null;
    if (tk.shape[0] * tk.shape[2] > std.math.maxInt(i32)) {
        _ = status.invalid("k_cache has {d} pages of {d}: slots must fit 31 bits", .{ tk.shape[0], tk.shape[2] });
        return null;
    }
    return .{ tk, tv };
}

fn ints(t: *const check.Tensor) []const i32 {
    return @as([*]const i32, @ptrCast(@alignCast(t.data.?)))[0..@intCast(t.shape[0])];
}

fn at(data: ?*anyopaque, offset: i64) [*]u8 {
    return @as([*]u8, @ptrCast(data.?)) + @as(usize, @bitCast(offset));
}

const Store = struct {
    ctx: *ctx_mod.Ctx,
    sources: [2]*const check.Tensor,
    caches: [2]*const check.Tensor,
    slots: []const i32,

    const tokens_per_chunk = 16;

    fn tokens(self: *const Store, first: usize, end: usize) void {
        const page_size = self.caches[0].shape[2];
        for (first..end) |token| {
            const slot: i64 = self.slots[token];
            if (slot < 0) continue;
            for (self.sources, self.caches) |source, cache| for (0..@intCast(source.shape[1])) |head_index| {
                const head: i64 = @intCast(head_index);
                const from = at(source.data, @as(i64, @intCast(token)) * source.stride[0] + head * source.stride[1]);
                const to = at(cache.data, @divFloor(slot, page_size) * cache.stride[0] + head * cache.stride[1] + @mod(slot, page_size) * cache.stride[2]);
                self.ctx.isa.store_row.?(@ptrCast(@alignCast(from)), to, cache.dtype, source.shape[2]);
            };
        }
    }

    fn body(self: *const Store, member: *Member) void {
        const chunks = std.math.divCeil(usize, self.slots.len, tokens_per_chunk) catch unreachable;
        while (member.claim(0, chunks)) |chunk|
            self.tokens(chunk * tokens_per_chunk, @min(self.slots.len, (chunk + 1) * tokens_per_chunk));
    }
};

pub fn kt_store_kv(handle: ?*c.kt_ctx_t, k: ?*const c.kt_tensor_t, v: ?*const c.kt_tensor_t, slot_mapping: ?*const c.kt_tensor_t, k_cache: ?*const c.kt_tensor_t, v_cache: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tk = check.f32s("k", k, 3) orelse return invalid;
    const tv = check.f32s("v", v, 3) orelse return invalid;
    const ts = check.i32s("slot_mapping", slot_mapping, 1) orelse return invalid;
    const pair = caches(k_cache, v_cache) orelse return invalid;
    const kv_heads = pair[0].shape[1];
    if (!check.size("k", tk, 1, kv_heads) or !check.size("k", tk, 2, pair[0].shape[3])) return invalid;
    if (!check.size("v", tv, 0, tk.shape[0]) or !check.size("v", tv, 1, kv_heads) or !check.size("v", tv, 2, pair[1].shape[3])) return invalid;
    if (!check.size("slot_mapping", ts, 0, tk.shape[0])) return invalid;
    const slots = pair[0].shape[0] * pair[0].shape[2];
    for (ints(ts), 0..) |slot, token| if (slot >= slots)
        return status.invalid("slot_mapping[{d}] is {d}, the cache has {d} slots", .{ token, slot, slots });
    const job: Store = .{ .ctx = ctx, .sources = .{ tk, tv }, .caches = pair, .slots = ints(ts) };
    if (job.slots.len <= Store.tokens_per_chunk) job.tokens(0, job.slots.len) else ctx.pool.run(&job, Store.body);
    return c.KT_OK;
}

/// One sequence's share of a call.
const Sequence = struct {
    table: [*]const i32,
    token: i64,
    position: i32,
    count: i32,
    /// Of kt_attention_item_t.
    keys: i32 = 0,
    short: bool = false,
    /// Of all items; a sequence's follow each other.
    first_item: usize = 0,
    /// Short: the context's splits that some query sees. Long: queries of one item in split_count items.
    split_first: usize = 0,
    split_count: usize = 0,
    /// Where its rows' partial results begin, in floats.
    partials: usize = 0,
    /// Of all rows that are combined after the barrier.
    first_row: usize = 0,
};

/// The item that a thread guessed to be its next, and how many keys of its first split it fetched.
const Ahead = struct { item: ?usize = null, keys: i32 = 0 };

/// A kv head's splits from `first` up to `end`.
const Share = struct { kv_head: i32, first: usize, end: usize };

const Job = struct {
    ctx: *ctx_mod.Ctx,
    shared: isa.kt_attention_t,
    sequences: []Sequence,
    items: usize,
    rows: usize,
    splits_per_item: usize,
    queries_per_item: usize,
    partials: [*]f32,
    scratch: [*]f32,
    scratch_stride: usize,
    /// Long queries are the tile instructions'.
    tiles: bool = false,

    fn heads(self: *const Job) usize {
        return @intCast(self.shared.kv_heads * self.shared.group);
    }

    fn partialFloats(self: *const Job) usize {
        return isa.KT_ATTENTION_PARTIAL(@as(usize, @intCast(self.shared.v_dim)));
    }

    fn itemsOf(self: *const Job, s: *const Sequence) usize {
        const per_head = if (s.short) std.math.divCeil(usize, s.split_count, self.splits_per_item) catch unreachable else s.split_count;
        return per_head * @as(usize, @intCast(self.shared.kv_heads));
    }

    fn body(self: *const Job, member: *Member) void {
        const scratch = self.scratch + member.index * self.scratch_stride;
        var index: usize = 0; // claims grow, so the search goes on where it was
        var ahead: Ahead = .{};
        while (member.claim(0, self.items)) |item| {
            index = self.sequenceOf(item, index);
            const s = &self.sequences[index];
            if (s.short) self.shortItem(index, item, member, &ahead, scratch) else self.longItem(s, item - s.first_item, scratch);
        }
        if (self.rows == 0) return;
        member.barrier();
        index = 0;
        while (member.claim(1, self.rows)) |row| {
            while (index + 1 < self.sequences.len and self.sequences[index + 1].first_row <= row) index += 1;
            const s = &self.sequences[index];
            const within = row - s.first_row;
            self.combine(s, within / self.heads(), within % self.heads());
        }
    }

    fn combine(self: *const Job, s: *const Sequence, query: usize, head: usize) void {
        const group: usize = @intCast(self.shared.group);
        const row = head / group * @as(usize, @intCast(s.count)) * group + query * group + head % group;
        const partials = self.partials + s.partials + row * s.split_count * self.partialFloats();
        self.ctx.isa.attention_combine.?(&self.shared, s.token + @as(i64, @intCast(query)), @intCast(head), partials, @intCast(s.split_count));
    }

    /// The sequence of an item, looked for from sequence `from` on.
    fn sequenceOf(self: *const Job, item: usize, from: usize) usize {
        var index = from;
        while (index + 1 < self.sequences.len and self.sequences[index + 1].first_item <= item) index += 1;
        return index;
    }

    /// A short sequence's share in one item.
    fn shareOf(self: *const Job, s: *const Sequence, item: usize) Share {
        const kv_heads: usize = @intCast(self.shared.kv_heads);
        const within = item - s.first_item;
        const first = within / kv_heads * self.splits_per_item;
        return .{ .kv_head = @intCast(within % kv_heads), .first = first, .end = @min(s.split_count, first + self.splits_per_item) };
    }

    fn setAhead(item: *isa.kt_attention_item_t, s: *const Sequence, kv_head: i32, split: usize) void {
        const base: i64 = @intCast((s.split_first + split) * split_keys);
        const keys = @min(split_keys, s.position + s.count - base);
        item.ahead = .{ .table = s.table, .kv_head = kv_head, .base = base, .keys = @intCast(keys) };
    }

    /// Some splits of one kv head; while one's values are read, the keys of the next are fetched. Partial results lie by
    /// [kv head][query][head of the group][split].
    fn shortItem(self: *const Job, index: usize, number: usize, member: *const Member, ahead: *Ahead, scratch: [*]f32) void {
        const s = &self.sequences[index];
        const share = self.shareOf(s, number);
        const kv_head: usize = @intCast(share.kv_head);
        const group: usize = @intCast(self.shared.group);
        const count: usize = @intCast(s.count);
        const row_stride = s.split_count * self.partialFloats();
        const rows = self.partials + s.partials + kv_head * group * count * row_stride;
        var item: isa.kt_attention_item_t = .{ .table = s.table, .token = s.token, .position = s.position, .count = s.count, .kv_head = share.kv_head, .keys = s.keys };
        if (ahead.item == number) item.warm = ahead.keys;
        ahead.item = null;
        for (share.first..share.end) |split| {
            item.ahead.keys = 0;
            if (split + 1 < share.end) setAhead(&item, s, share.kv_head, split + 1) else {
                // the next claim is a good guess now
                const next = member.peek();
                if (next < self.items) {
                    const sequence_ahead = &self.sequences[self.sequenceOf(next, index)];
                    const share_ahead = self.shareOf(sequence_ahead, next);
                    setAhead(&item, sequence_ahead, share_ahead.kv_head, share_ahead.first);
                    ahead.item = next;
                }
            }
            item.warm = self.ctx.isa.attention_split.?(&self.shared, &item, @intCast(s.split_first + split), rows + split * self.partialFloats(), @intCast(row_stride), scratch);
        }
        ahead.keys = item.warm;
        if (s.split_count > 1) return;
        for (0..count * group) |row| {
            const head: i64 = @intCast(kv_head * group + row % group);
            self.ctx.isa.attention_combine.?(&self.shared, s.token + @as(i64, @intCast(row / group)), head, rows + row * row_stride, 1);
        }
    }

    /// A block of queries of one kv head, the last (and longest) first.
    fn longItem(self: *const Job, s: *const Sequence, within: usize, scratch: [*]f32) void {
        const kv_heads: usize = @intCast(self.shared.kv_heads);
        const first = (s.split_count - 1 - within / kv_heads) * self.queries_per_item;
        const count = @min(@as(usize, @intCast(s.count)) - first, self.queries_per_item);
        const item: isa.kt_attention_item_t = .{
            .table = s.table,
            .token = s.token + @as(i64, @intCast(first)),
            .position = s.position + @as(i32, @intCast(first)),
            .count = @intCast(count),
            .kv_head = @intCast(within % kv_heads),
            .keys = s.keys,
        };
        const block = if (self.tiles) self.ctx.isa.attention_tiles else self.ctx.isa.attention_block;
        block.?(&self.shared, &item, scratch);
    }
};

fn padded(n: usize) usize {
    return isa.KT_ATTENTION_PADDED(n);
}

/// Floats of scratch of one thread: the larger of attention_split's and attention_block's.
fn scratchFloats(shared: *const isa.kt_attention_t, queries_per_item: usize) usize {
    const group: usize = @intCast(shared.group);
    const k = padded(@intCast(shared.k_dim));
    const v = padded(@intCast(shared.v_dim));
    const split = @max(isa.KT_ATTENTION_SHORT, group) * k + isa.KT_ATTENTION_SCORES;
    const rows = padded(queries_per_item * group + isa.KT_ATTENTION_TILE);
    const block = rows * (k + v + 2) + isa.KT_ATTENTION_BLOCK * (k + v + isa.KT_ATTENTION_TILE) + 64;
    const tile_rows = std.mem.alignForward(usize, queries_per_item * group, 16);
    const tile_k = std.mem.alignForward(usize, k, 32);
    const tile_v = std.mem.alignForward(usize, v, 64);
    const tiles = tile_rows * (2 * tile_k + tile_v + 2) + isa.KT_ATTENTION_BLOCK * (tile_k + tile_v + 32) + 16 * 64 + 16;
    return padded(@max(split, block, tiles));
}

const Arguments = struct { q: *const check.Tensor, tables: *const check.Tensor, starts: []const i32, lens: []const i32, page_size: i64, pages: i64, window: i32, chunk: i32, bidirectional: bool };

/// Sequence `index` as the arguments give it, every page that it reads checked; null with the error recorded.
fn sequence(a: *const Arguments, index: usize) ?Sequence {
    const start = a.starts[index];
    const end = a.starts[index + 1];
    const length = a.lens[index];
    if (start < 0 or end < start or end > a.q.shape[0])
        return fail("query_start[{d}] to [{d}] is {d} to {d}, expected growing numbers up to {d} tokens", .{ index, index + 1, start, end, a.q.shape[0] });
    const max_pages = a.tables.shape[1];
    if (length < end - start or length > max_pages * a.page_size)
        return fail("seq_lens[{d}] is {d}, expected at least its {d} queries and at most {d} pages of {d}", .{ index, length, end - start, max_pages, a.page_size });
    const row = at(a.tables.data, @as(i64, @intCast(index)) * a.tables.stride[0]);
    var s: Sequence = .{ .table = @ptrCast(@alignCast(row)), .token = start, .count = end - start, .position = length - (end - start), .keys = if (a.bidirectional) length else 0 };
    if (s.count == 0) return s;
    const window_first: i64 = if (a.window > 0) @max(0, @as(i64, s.position) - a.window + 1) else 0;
    const first: i64 = if (a.chunk > 0) @max(window_first, s.position - @rem(s.position, a.chunk)) else window_first;
    const first_page: usize = @intCast(@divFloor(first, a.page_size));
    const last_page: usize = @intCast(@divFloor(@as(i64, length) - 1, a.page_size));
    for (s.table[first_page .. last_page + 1], first_page..) |page, slot| if (page < 0 or page >= a.pages)
        return fail("block_tables[{d}][{d}] is {d}, the cache has {d} pages", .{ index, slot, page, a.pages });
    s.split_first = @as(usize, @intCast(first)) / split_keys;
    s.split_count = @as(usize, @intCast(length - 1)) / split_keys + 1 - s.split_first;
    return s;
}

fn fail(comptime fmt: []const u8, args: anytype) ?Sequence {
    _ = status.invalid(fmt, args);
    return null;
}

pub fn kt_paged_attention(handle: ?*c.kt_ctx_t, q: ?*const c.kt_tensor_t, k_cache: ?*const c.kt_tensor_t, v_cache: ?*const c.kt_tensor_t, block_tables: ?*const c.kt_tensor_t, query_start: ?*const c.kt_tensor_t, seq_lens: ?*const c.kt_tensor_t, sinks: ?*const c.kt_tensor_t, params: ?*const c.kt_attention_params_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const p = params orelse return status.invalid("params are NULL", .{});
    if (p.struct_size < @sizeOf(c.kt_attention_params_t)) return status.invalid("params.struct_size is {d}", .{p.struct_size});
    if (!(p.soft_cap >= 0)) return status.invalid("soft_cap is {d}", .{p.soft_cap});
    if (p.sliding_window < 0) return status.invalid("sliding_window is {d}", .{p.sliding_window});
    if (p.chunk_size < 0) return status.invalid("chunk_size is {d}", .{p.chunk_size});
    if (!std.math.isFinite(p.temperature_scale)) return status.invalid("temperature_scale is {d}", .{p.temperature_scale});
    if (p.temperature_scale != 0 and !(p.temperature_floor > 0)) return status.invalid("temperature_floor is {d}", .{p.temperature_floor});
    if (p.bidirectional > 1) return status.invalid("bidirectional is {d}, expected 0 or 1", .{p.bidirectional});
    if (p.bidirectional == 1 and (p.sliding_window > 0 or p.chunk_size > 0)) return status.invalid("bidirectional attention has no window and no chunks", .{});
    const tq = check.f32s("q", q, 3) orelse return invalid;
    const to = check.f32s("out", out, 3) orelse return invalid;
    const tt = check.i32s("block_tables", block_tables, 2) orelse return invalid;
    const tl = check.i32s("seq_lens", seq_lens, 1) orelse return invalid;
    const ts = check.i32s("query_start", query_start, 1) orelse return invalid;
    const pair = caches(k_cache, v_cache) orelse return invalid;
    const kv_heads = pair[0].shape[1];
    const k_dim = pair[0].shape[3];
    const v_dim = pair[1].shape[3];
    for ([_]i64{ k_dim, v_dim }) |dim| if (@rem(dim, 8) != 0 or dim > max_dim)
        return status.invalid("head dimension is {d}, expected a multiple of 8 up to {d}", .{ dim, max_dim });
    if (@rem(tq.shape[1], kv_heads) != 0) return status.invalid("q has {d} heads, the cache {d}: expected a multiple", .{ tq.shape[1], kv_heads });
    if (!check.size("q", tq, 2, k_dim)) return invalid;
    if (!check.size("out", to, 0, tq.shape[0]) or !check.size("out", to, 1, tq.shape[1]) or !check.size("out", to, 2, v_dim)) return invalid;
    const count = tl.shape[0];
    if (!check.size("block_tables", tt, 0, count) or !check.size("query_start", ts, 0, count + 1)) return invalid;
    var job: Job = undefined;
    job.ctx = ctx;
    job.shared = .{
        .q = @ptrCast(tq.data.?),
        .k = @ptrCast(pair[0].data.?),
        .v = @ptrCast(pair[1].data.?),
        .out = @ptrCast(to.data.?),
        .sinks = null,
        .q_token = tq.stride[0],
        .q_head = tq.stride[1],
        .out_token = to.stride[0],
        .out_head = to.stride[1],
        .k_page = pair[0].stride[0],
        .k_head = pair[0].stride[1],
        .k_row = pair[0].stride[2],
        .v_page = pair[1].stride[0],
        .v_head = pair[1].stride[1],
        .v_row = pair[1].stride[2],
        .kv_heads = @intCast(kv_heads),
        .group = @intCast(@divExact(tq.shape[1], kv_heads)),
        .k_dim = @intCast(k_dim),
        .v_dim = @intCast(v_dim),
        .page_size = @intCast(pair[0].shape[2]),
        .kind = kindOf(pair[0].dtype).?,
        .window = p.sliding_window,
        .chunk = p.chunk_size,
        .scale = p.scale,
        .soft_cap = p.soft_cap,
        .temperature_scale = p.temperature_scale,
        .temperature_floor = p.temperature_floor,
    };
    splitGroup(&job.shared);
    if (sinks != null) {
        const tk = check.f32s("sinks", sinks, 1) orelse return invalid;
        if (!check.size("sinks", tk, 0, tq.shape[1])) return invalid;
        job.shared.sinks = @ptrCast(@alignCast(tk.data.?));
    }
    const arguments: Arguments = .{ .q = tq, .tables = tt, .starts = ints(ts), .lens = ints(tl), .page_size = pair[0].shape[2], .pages = pair[0].shape[0], .window = p.sliding_window, .chunk = p.chunk_size, .bidirectional = p.bidirectional != 0 };
    return plan(&job, &arguments);
}

/// The heads of an only kv head as those of several that lie at the same place, so that threads share them.
fn splitGroup(shared: *isa.kt_attention_t) void {
    if (shared.kv_heads != 1 or shared.group <= max_group) return;
    var size: i32 = max_group;
    while (@rem(shared.group, size) != 0) size -= 1;
    shared.kv_heads = @divExact(shared.group, size);
    shared.group = size;
    shared.k_head = 0;
    shared.v_head = 0;
}

/// Checks every sequence, lays out scratch and items, and runs.
fn plan(job: *Job, arguments: *const Arguments) c.kt_status_t {
    const group: usize = @intCast(job.shared.group);
    const kv_heads: usize = @intCast(job.shared.kv_heads);
    const threads = job.ctx.pool.num_threads;
    job.tiles = job.ctx.fast() and job.ctx.isa.attention_tiles != null;
    job.queries_per_item = @max(1, @as(usize, isa.KT_ATTENTION_ROWS) / group);
    job.scratch_stride = scratchFloats(&job.shared, job.queries_per_item);
    var partial_floats: usize = 0;
    var units: usize = 0;
    for (0..arguments.lens.len) |index| {
        const s = sequence(arguments, index) orelse return invalid;
        if (!isShort(&s, group)) continue;
        partial_floats += @as(usize, @intCast(s.count)) * job.heads() * s.split_count * job.partialFloats();
        units += s.split_count * kv_heads;
    }
    job.splits_per_item = std.math.clamp(units / (threads * 8), 1, max_splits_per_item);
    const sequence_bytes = std.mem.alignForward(usize, arguments.lens.len * @sizeOf(Sequence), 64);
    const bytes = sequence_bytes + (threads * job.scratch_stride + partial_floats) * @sizeOf(f32);
    const memory = job.ctx.reserve(bytes) catch return status.outOfMemory(@intCast(bytes));
    job.sequences = @as([*]Sequence, @ptrCast(memory.ptr))[0..arguments.lens.len];
    job.scratch = @ptrCast(@alignCast(memory.ptr + sequence_bytes));
    job.partials = job.scratch + threads * job.scratch_stride;
    arrange(job, arguments, group);
    if (job.items > 0) job.ctx.pool.run(@as(*const Job, job), Job.body);
    return c.KT_OK;
}

fn isShort(s: *const Sequence, group: usize) bool {
    return s.count == 1 or @as(usize, @intCast(s.count)) * group <= isa.KT_ATTENTION_SHORT;
}

/// Long sequences first, since their items are the large ones; sequences without queries are left out.
fn arrange(job: *Job, arguments: *const Arguments, group: usize) void {
    var kept: usize = 0;
    var partials: usize = 0;
    job.items = 0;
    job.rows = 0;
    for ([_]bool{ false, true }) |short| for (0..arguments.lens.len) |index| {
        var s = sequence(arguments, index).?; // checked before
        if (s.count == 0 or isShort(&s, group) != short) continue;
        s.short = short;
        if (!short) s.split_count = std.math.divCeil(usize, @intCast(s.count), job.queries_per_item) catch unreachable;
        s.first_item = job.items;
        s.first_row = job.rows;
        s.partials = partials;
        job.items += job.itemsOf(&s);
        if (short) {
            const rows = @as(usize, @intCast(s.count)) * job.heads();
            partials += rows * s.split_count * job.partialFloats();
            if (s.split_count > 1) job.rows += rows;
        }
        job.sequences[kept] = s;
        kept += 1;
    };
    job.sequences = job.sequences[0..kept];
}
