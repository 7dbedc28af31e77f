//! Scans over rows of logits, in chunks over the pool: maxima, sums of weights, and tokens near the maximum as keys.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const inf = std.math.inf(f32);

const chunk_values = 4096;
/// No more logits than this in all are scanned by the caller alone: one core reads them in about 15 us.
const serial_values = 1 << 18;
/// Weighing a logit costs about as much as finding the maximum of this many.
pub const weighing_cost = 4;
/// Below e^-87 a weight is 0, so a range this wide holds everything that can be drawn.
pub const widest = 88;

pub const Claims = struct {
    member: ?*Member,
    phase: usize,
    total: usize,
    at: usize = 0,

    pub fn next(self: *Claims) ?usize {
        if (self.member) |member| return member.claim(self.phase, self.total);
        if (self.at == self.total) return null;
        self.at += 1;
        return self.at - 1;
    }
};

pub fn barrier(member: ?*Member) void {
    if (member) |m| m.barrier();
}

pub fn slotOf(member: ?*Member) usize {
    return if (member) |m| m.index else 0;
}

pub const Best = struct { value: f32, index: ?usize };
pub const Chunk = struct { max: f32, index: i64, sum: f64 };

pub const Scan = struct {
    ctx: *ctx_mod.Ctx,
    logits: check.Rows,
    vocab: usize,
    chunks_per_row: usize,
    chunks: []Chunk,

    pub fn count(self: *const Scan) usize {
        return self.logits.count * self.chunks_per_row;
    }

    pub fn values(self: *const Scan, unit: usize) []f32 {
        const start = unit % self.chunks_per_row * chunk_values;
        return self.logits.f32Row(unit / self.chunks_per_row)[start..@min(self.vocab, start + chunk_values)];
    }

    pub fn findMax(self: *const Scan, unit: usize) void {
        const part = self.values(unit);
        const chunk = &self.chunks[unit];
        chunk.index = self.ctx.isa.argmax_row.?(part.ptr, @intCast(part.len), &chunk.max);
    }

    pub fn rowChunks(self: *const Scan, row: usize) []Chunk {
        return self.chunks[row * self.chunks_per_row ..][0..self.chunks_per_row];
    }

    pub fn best(self: *const Scan, row: usize) Best {
        var found: Best = .{ .value = -inf, .index = null };
        for (self.rowChunks(row), 0..) |chunk, i| {
            if (chunk.index < 0) continue;
            if (found.index == null or chunk.max > found.value)
                found = .{ .value = chunk.max, .index = i * chunk_values + @as(usize, @intCast(chunk.index)) };
        }
        return found;
    }

    pub fn addWeights(self: *const Scan, unit: usize, inv_temperature: f32) void {
        const part = self.values(unit);
        const max = self.best(unit / self.chunks_per_row).value;
        self.chunks[unit].sum = self.ctx.isa.weight_sum.?(part.ptr, max, inv_temperature, @intCast(part.len));
    }

    pub fn sum(self: *const Scan, row: usize) f64 {
        var total: f64 = 0;
        for (self.rowChunks(row)) |chunk| total += chunk.sum;
        return total;
    }

    /// Keys of the row's logits that are at least `bound`, in the order of their ids; gives up beyond `limit`.
    pub fn gather(self: *const Scan, row: usize, bound: f32, keys: []u64, limit: usize) []u64 {
        var n: usize = 0;
        for (self.rowChunks(row), 0..) |chunk, i| {
            if (n > limit) break;
            if (!(chunk.max >= bound)) continue;
            const part = self.values(row * self.chunks_per_row + i);
            n += @intCast(self.ctx.isa.gather_above.?(part.ptr, @intCast(part.len), bound, @intCast(i * chunk_values), keys.ptr + n));
        }
        return keys[0..n];
    }
};

/// One thread's memory for the candidates of a row.
pub const Slot = struct { keys: []u64, other: []u64, weights: []f32, seen: []u32 };

/// A logit changed in place for one call, and what it was.
pub const Edit = struct { id: u32, old: f32 };

pub const Memory = struct {
    chunks: []Chunk,
    slots: []Slot = &.{},
    edits: []Edit = &.{},

    /// All arrays in the context's scratch. `slots` threads get candidate arrays, with `seen` for penalties.
    pub fn take(ctx: *ctx_mod.Ctx, chunks: usize, slots: usize, vocab: usize, seen: bool, edits: usize) error{OutOfMemory}!Memory {
        const slot_bytes = vocab * (2 * @sizeOf(u64) + 2 * @sizeOf(f32)) + @sizeOf(Slot) + 256;
        const bytes = chunks * @sizeOf(Chunk) + slots * slot_bytes + edits * @sizeOf(Edit) + 1024;
        var fixed = std.heap.FixedBufferAllocator.init(try ctx.reserve(bytes));
        const gpa = fixed.allocator();
        var memory: Memory = .{ .chunks = try gpa.alloc(Chunk, chunks) };
        memory.slots = try gpa.alloc(Slot, slots);
        for (memory.slots) |*slot| slot.* = .{
            .keys = try gpa.alloc(u64, vocab),
            .other = try gpa.alloc(u64, vocab),
            .weights = try gpa.alloc(f32, vocab),
            .seen = try gpa.alloc(u32, if (seen) vocab else 0),
        };
        memory.edits = try gpa.alloc(Edit, edits);
        return memory;
    }
};

pub fn scanOf(ctx: *ctx_mod.Ctx, t: *const check.Tensor) ?Scan {
    const logits = check.rows("logits", t) orelse return null;
    const vocab: usize = @intCast(t.shape[1]);
    if (t.shape[1] > std.math.maxInt(i32)) {
        _ = core.status.invalid("logits has {d} columns, more than an id can name", .{t.shape[1]});
        return null;
    }
    if (logits.count > 1 and logits.stride < vocab * @sizeOf(f32)) {
        _ = core.status.invalid("logits has rows of {d} values {d} bytes apart: they overlap", .{ vocab, logits.stride });
        return null;
    }
    const chunks_per_row = std.math.divCeil(usize, vocab, chunk_values) catch unreachable;
    return .{ .ctx = ctx, .logits = logits, .vocab = vocab, .chunks_per_row = chunks_per_row, .chunks = &.{} };
}

/// Runs body(job, member) over the pool, or alone (member null) when there is little to scan.
pub fn launch(job: anytype, comptime body: anytype, cost: usize) void {
    const scan: *const Scan = &job.scan;
    if (scan.logits.count * scan.vocab * cost <= serial_values) return body(job, null);
    const Pooled = struct {
        fn run(pooled: @TypeOf(job), member: *Member) void {
            body(pooled, member);
        }
    };
    scan.ctx.pool.run(job, Pooled.run);
}

pub fn i32Data(t: *const check.Tensor) []i32 {
    return @as([*]i32, @ptrCast(@alignCast(t.data.?)))[0..@intCast(t.shape[0])];
}
