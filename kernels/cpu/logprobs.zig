//! kt_argmax, kt_logprobs, kt_mask_logits: what the model itself says of a token.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const candidates = @import("candidates.zig");
const logits_scan = @import("logits_scan.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;
const inf = std.math.inf(f32);
const Scan = logits_scan.Scan;
const Slot = logits_scan.Slot;
const widest = logits_scan.widest;

const Argmax = struct {
    scan: Scan,

    fn body(self: *const Argmax, member: ?*Member) void {
        var units: logits_scan.Claims = .{ .member = member, .phase = 0, .total = self.scan.count() };
        while (units.next()) |unit| self.scan.findMax(unit);
    }
};

pub fn kt_argmax(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const to = check.i32s("out", out, 1) orelse return invalid;
    if (!check.size("out", to, 0, tl.shape[0])) return invalid;
    var job: Argmax = .{ .scan = logits_scan.scanOf(ctx, tl) orelse return invalid };
    const memory = logits_scan.Memory.take(ctx, job.scan.count(), 0, 0, false, 0) catch return core.status.outOfMemory(@intCast(job.scan.count()));
    job.scan.chunks = memory.chunks;
    logits_scan.launch(&job, Argmax.body, 1);
    for (logits_scan.i32Data(to), 0..) |*id, row| id.* = @intCast(job.scan.best(row).index orelse 0);
    return c.KT_OK;
}

pub fn kt_mask_logits(handle: ?*c.kt_ctx_t, logits: ?*const c.kt_tensor_t, bits: ?*const c.kt_tensor_t) c.kt_status_t {
    _ = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const tb = check.i32s("bits", bits, 2) orelse return invalid;
    if (!check.size("bits", tb, 0, tl.shape[0])) return invalid;
    if (!check.size("bits", tb, 1, @divFloor(tl.shape[1] + 31, 32))) return invalid;
    const rows = check.rows("logits", tl) orelse return invalid;
    const masks = check.rows("bits", tb) orelse return invalid;
    const vocab: usize = @intCast(rows.n);
    for (0..rows.count) |row| {
        const values = rows.f32Row(row)[0..vocab];
        const words: [*]const u32 = @ptrCast(@alignCast(masks.data + row * masks.stride));
        var at: usize = 0;
        while (at < vocab) : (at += 32) {
            const word = words[at / 32];
            if (word == std.math.maxInt(u32)) continue;
            const part = values[at..@min(vocab, at + 32)];
            if (word == 0) {
                @memset(part, -inf);
                continue;
            }
            for (part, 0..) |*value, bit| {
                if (word >> @intCast(bit) & 1 == 0) value.* = -inf;
            }
        }
    }
    return c.KT_OK;
}

const Logprobs = struct {
    scan: Scan,
    tokens: []const i32,
    out_token: [*]f32,
    out_ids: ?check.Rows,
    out_logprobs: ?check.Rows,
    slots: []Slot,

    fn body(self: *Logprobs, member: ?*Member) void {
        const scan = &self.scan;
        var maxima: logits_scan.Claims = .{ .member = member, .phase = 0, .total = scan.count() };
        while (maxima.next()) |unit| scan.findMax(unit);
        logits_scan.barrier(member);
        var sums: logits_scan.Claims = .{ .member = member, .phase = 1, .total = scan.count() };
        while (sums.next()) |unit| scan.addWeights(unit, 1);
        logits_scan.barrier(member);
        var finished: logits_scan.Claims = .{ .member = member, .phase = 2, .total = self.tokens.len };
        while (finished.next()) |row| self.finish(row, logits_scan.slotOf(member));
    }

    fn finish(self: *const Logprobs, row: usize, slot_index: usize) void {
        const scan = &self.scan;
        const max = scan.best(row).value;
        const log_sum = @log(scan.sum(row));
        self.out_token[row] = logprob(scan.logits.f32Row(row)[@intCast(self.tokens[row])], max, log_sum);
        const out_ids = self.out_ids orelse return;
        const ids: [*]i32 = @ptrCast(@alignCast(out_ids.data + row * out_ids.stride));
        const values = self.out_logprobs.?.f32Row(row);
        const n: usize = @intCast(out_ids.n);
        const slot = &self.slots[slot_index];
        var width: f32 = 2;
        var keys = scan.gather(row, max - width, slot.keys, scan.vocab);
        while (keys.len < n and width <= widest) {
            width *= 2;
            keys = scan.gather(row, max - width, slot.keys, scan.vocab);
        }
        if (keys.len < n) keys = scan.gather(row, -inf, slot.keys, scan.vocab);
        const found = @min(n, keys.len);
        const sorted = candidates.sort(keys, slot.other);
        scan.ctx.isa.key_values.?(sorted.ptr, values, @intCast(found));
        for (0..found) |i| {
            ids[i] = @intCast(@as(u32, @truncate(sorted[i])));
            values[i] = logprob(values[i], max, log_sum);
        }
        var at = found; // NaN logits come last, in the order of their ids
        for (scan.logits.f32Row(row)[0..scan.vocab], 0..) |logit, id| {
            if (at == n) break;
            if (!std.math.isNan(logit)) continue;
            ids[at] = @intCast(id);
            values[at] = -inf;
            at += 1;
        }
    }

    fn logprob(logit: f32, max: f32, log_sum: f64) f32 {
        if (std.math.isNan(logit)) return -inf;
        if (logit == max) return @floatCast(-log_sum);
        return @floatCast(@as(f64, logit) - max - log_sum);
    }
};

pub fn kt_logprobs(
    handle: ?*c.kt_ctx_t,
    logits: ?*const c.kt_tensor_t,
    tokens: ?*const c.kt_tensor_t,
    out_token: ?*const c.kt_tensor_t,
    out_ids: ?*const c.kt_tensor_t,
    out_logprobs: ?*const c.kt_tensor_t,
) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tl = check.f32s("logits", logits, 2) orelse return invalid;
    const tt = check.i32s("tokens", tokens, 1) orelse return invalid;
    const to = check.f32s("out_token", out_token, 1) orelse return invalid;
    if (!check.size("tokens", tt, 0, tl.shape[0])) return invalid;
    if (!check.size("out_token", to, 0, tl.shape[0])) return invalid;
    if ((out_ids == null) != (out_logprobs == null)) return core.status.invalid("out_ids and out_logprobs are given together or not at all", .{});
    var job: Logprobs = .{
        .scan = logits_scan.scanOf(ctx, tl) orelse return invalid,
        .tokens = logits_scan.i32Data(tt),
        .out_token = @ptrCast(@alignCast(to.data.?)),
        .out_ids = null,
        .out_logprobs = null,
        .slots = &.{},
    };
    if (out_ids != null) {
        const ti = check.i32s("out_ids", out_ids, 2) orelse return invalid;
        const tp = check.f32s("out_logprobs", out_logprobs, 2) orelse return invalid;
        if (!check.size("out_ids", ti, 0, tl.shape[0])) return invalid;
        if (ti.shape[1] > tl.shape[1]) return core.status.invalid("out_ids has {d} columns, the vocabulary {d} ids", .{ ti.shape[1], tl.shape[1] });
        for (0..2) |i| if (!check.size("out_logprobs", tp, i, ti.shape[i])) return invalid;
        job.out_ids = check.rows("out_ids", ti) orelse return invalid;
        job.out_logprobs = check.rows("out_logprobs", tp) orelse return invalid;
    }
    for (job.tokens, 0..) |token, i| {
        if (token < 0 or token >= job.scan.vocab)
            return core.status.invalid("tokens[{d}] is {d}, the vocabulary has ids 0 to {d}", .{ i, token, job.scan.vocab - 1 });
    }
    const slots: usize = if (job.out_ids == null) 0 else ctx.pool.num_threads;
    const memory = logits_scan.Memory.take(ctx, job.scan.count(), slots, job.scan.vocab, false, 0) catch
        return core.status.outOfMemory(@intCast(job.scan.vocab * 24 * @max(1, slots)));
    job.scan.chunks = memory.chunks;
    job.slots = memory.slots;
    logits_scan.launch(&job, Logprobs.body, logits_scan.weighing_cost);
    return c.KT_OK;
}
