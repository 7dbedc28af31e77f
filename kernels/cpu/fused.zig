//! kt_gate_up_act and kt_qkv_rope_store: the fused steps of a dense layer, each one launch of the pool.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const normOf = @import("linear.zig").normOf;
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const invalid = c.KT_ERR_INVALID_ARG;

const Handle = ?*c.kt_ctx_t;
const Arg = ?*const c.kt_tensor_t;

const GateUp = struct {
    input: mm.Input,
    gate: mm.Weight,
    up: mm.Weight,
    tasks: mm.Tasks,
    act: u32,
    out: check.Rows,
    scratch: [*]u8 = undefined,
    scratch_bytes: usize,
    /// Per member: gate and up of one task, [tokens][rows] each.
    buffers: [*]u8 = undefined,
    buffer_bytes: usize,

    fn body(self: *const GateUp, member: *Member) void {
        const table = self.input.ctx.isa;
        self.input.prepare(member);
        const scratch = self.scratch + member.index * self.scratch_bytes;
        const buffer: [*]f32 = @ptrCast(@alignCast(self.buffers + member.index * self.buffer_bytes));
        const half = self.buffer_bytes / 8;
        var gate_job = self.input.job(self.gate, member.index);
        var up_job = self.input.job(self.up, member.index);
        const stride = self.tasks.rows_per_task;
        gate_job.out_stride = @intCast(stride);
        up_job.out_stride = @intCast(stride);
        while (self.tasks.claim(member, 1)) |r| {
            // the kernels index the whole output; the buffer holds the task's corner of it
            const corner = r.token0 * stride + r.row0;
            gate_job.out = offsetBack(buffer, corner);
            up_job.out = offsetBack(buffer + half, corner);
            table.matmul.?(&gate_job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
            table.matmul.?(&up_job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
            for (r.token0..r.token1) |token| {
                const line = (token - r.token0) * stride;
                table.act_mul_row.?(self.act, buffer + line, buffer + half + line, self.out.f32Row(token) + r.row0, @intCast(r.row1 - r.row0));
            }
        }
    }
};

/// A pointer `count` floats before `buffer`: only dereferenced at offsets of `count` and more.
pub fn offsetBack(buffer: [*]f32, count: usize) [*]f32 {
    return @ptrFromInt(@intFromPtr(buffer) -% count * @sizeOf(f32));
}

pub fn kt_gate_up_act(handle: Handle, x: Arg, norm_weight: Arg, eps: f32, offset: f32, wg: Arg, wu: Arg, act: u32, out: Arg) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const tx = check.f32s("x", x, 2) orelse return invalid;
    const gate = mm.Weight.from("wg", ctx, wg, tx.shape[1]) orelse return invalid;
    const up = mm.Weight.from("wu", ctx, wu, tx.shape[1]) orelse return invalid;
    if (up.rows != gate.rows) return status.invalid("wu has {d} rows, wg {d}", .{ up.rows, gate.rows });
    if (act > c.KT_ACT_SWIGLU_OAI) return status.invalid("act is {d}", .{act});
    const to = check.f32s("out", out, 2) orelse return invalid;
    if (!check.size("out", to, 0, tx.shape[0]) or !check.size("out", to, 1, @intCast(gate.rows))) return invalid;
    const norm = normOf("norm_weight", norm_weight, eps, offset, tx.shape[1]) catch return invalid;
    const input = mm.Input.init(ctx, check.rows("x", tx) orelse return invalid, norm, &.{ gate, up });
    const tasks = mm.Tasks.among(ctx, gate, gate.rows, mm.bytes_per_pair, input.tokens, input.tile_tokens);
    var layout: mm.Scratch = .{};
    const copies = layout.add(input.scratchBytes());
    const per_thread = mm.matmulScratch(ctx, gate.cols);
    const scratch = layout.add(per_thread * ctx.pool.num_threads);
    const buffer_bytes = 2 * std.mem.alignForward(usize, tasks.rows_per_task * tasks.tokens_per_task * 4, 64);
    const buffers = layout.add(buffer_bytes * ctx.pool.num_threads);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;
    var region: GateUp = .{
        .input = input,
        .gate = gate,
        .up = up,
        .tasks = tasks,
        .act = act,
        .out = check.rows("out", to) orelse return invalid,
        .scratch = memory + scratch,
        .scratch_bytes = per_thread,
        .buffers = memory + buffers,
        .buffer_bytes = buffer_bytes,
    };
    region.input.copies = memory + copies;
    ctx.pool.run(&region, GateUp.body);
    return c.KT_OK;
}

const heads_per_claim = 4;

const Qkv = struct {
    input: mm.Input,
    weights: [3]mm.Weight,
    tasks: [3]mm.Tasks,
    biases: [3]?[*]const f32,
    /// q goes straight to its place; k and v are made in scratch memory [tokens][rows].
    outs: [3][*]f32 = undefined,
    out_strides: [3]usize,
    heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    q_norm: ?mm.Norm,
    k_norm: ?mm.Norm,
    /// The norms are over all heads of a token together.
    whole_norms: bool,
    rope: ?check.Rows,
    interleaved: u32,
    slots: [*]const i32,
    /// Of the cache: the caller is told of a slot beyond, launches of a graph pass over it.
    slots_end: i64,
    k_cache: *const check.Tensor,
    v_cache: *const check.Tensor,
    scratch: [*]u8 = undefined,
    scratch_bytes: usize,

    fn body(self: *const Qkv, member: *Member) void {
        self.input.prepare(member);
        const scratch = self.scratch + member.index * self.scratch_bytes;
        while (mm.claimAny(member, 1, &self.tasks)) |claimed| {
            const which = claimed.which;
            const r = claimed.range;
            var job = self.input.job(self.weights[which], member.index);
            job.bias = self.biases[which];
            job.out = self.outs[which];
            job.out_stride = @intCast(self.out_strides[which]);
            self.input.ctx.isa.matmul.?(&job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
        }
        member.barrier();
        if (self.whole_norms) {
            while (member.claim(3, 2 * self.input.tokens)) |item| self.normToken(item / 2, item % 2);
            member.barrier();
        }
        const per_token = self.heads + 2 * self.kv_heads;
        const count = self.input.tokens * per_token;
        while (member.claim(2, (count + heads_per_claim - 1) / heads_per_claim)) |chunk| {
            for (chunk * heads_per_claim..@min(count, (chunk + 1) * heads_per_claim)) |item| self.finishHead(item / per_token, item % per_token);
        }
    }

    /// q (0) or k (1) of a token, all heads together.
    fn normToken(self: *const Qkv, token: usize, which: usize) void {
        const n = (if (which == 0) self.q_norm else self.k_norm) orelse return;
        const row = self.outs[which] + token * self.out_strides[which];
        const size = self.k_dim * if (which == 0) self.heads else self.kv_heads;
        self.input.ctx.isa.rms_norm_row.?(row, n.weight, n.eps, n.offset, row, @intCast(size));
    }

    fn finishHead(self: *const Qkv, token: usize, index: usize) void {
        const table = self.input.ctx.isa;
        if (index < self.heads) {
            const row = self.outs[0] + token * self.out_strides[0] + index * self.k_dim;
            return self.normAndRope(row, self.q_norm, token);
        }
        const slot = self.slots[token];
        const is_kept = slot >= 0 and slot < self.slots_end;
        if (index < self.heads + self.kv_heads) {
            const head = index - self.heads;
            const row = self.outs[1] + token * self.out_strides[1] + head * self.k_dim;
            self.normAndRope(row, self.k_norm, token);
            if (is_kept) table.store_row.?(row, cacheRow(self.k_cache, slot, head), self.k_cache.dtype, @intCast(self.k_dim));
        } else if (is_kept) {
            const head = index - self.heads - self.kv_heads;
            const row = self.outs[2] + token * self.out_strides[2] + head * self.v_dim;
            table.store_row.?(row, cacheRow(self.v_cache, slot, head), self.v_cache.dtype, @intCast(self.v_dim));
        }
    }

    fn normAndRope(self: *const Qkv, row: [*]f32, norm: ?mm.Norm, token: usize) void {
        const table = self.input.ctx.isa;
        if (!self.whole_norms) if (norm) |n| table.rms_norm_row.?(row, n.weight, n.eps, n.offset, row, @intCast(self.k_dim));
        if (self.rope) |rope| table.rope_row.?(row, rope.f32Row(token), @divExact(rope.n, 2), self.interleaved);
    }
};

/// Whether a norm's weights are for all heads together and not for each.
fn isWhole(norm: Arg, k_dim: i64) bool {
    const tensor = norm orelse return false;
    return tensor.shape[0] != k_dim;
}

fn cacheRow(cache: *const check.Tensor, slot: i32, head: usize) *anyopaque {
    const page_size: i64 = cache.shape[2];
    const page = @divFloor(slot, page_size);
    const offset = page * cache.stride[0] + @as(i64, @intCast(head)) * cache.stride[1] + @rem(slot, page_size) * cache.stride[2];
    return @ptrFromInt(@intFromPtr(cache.data.?) + @as(usize, @intCast(offset)));
}

fn cacheArg(comptime name: []const u8, given: Arg) ?*const check.Tensor {
    const t = check.tensor(name, given, 4) orelse return null;
    if (t.dtype == c.KT_F16 or t.dtype == c.KT_F32 or t.dtype == c.KT_Q8_0) return t;
    _ = status.invalid("{s} has type {d}, expected F16, F32 or Q8_0", .{ name, t.dtype });
    return null;
}

pub fn kt_qkv_rope_store(handle: Handle, args: ?*const c.kt_qkv_args_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const a = args orelse return status.invalid("args are NULL", .{});
    if (a.struct_size < @sizeOf(c.kt_qkv_args_t)) return status.invalid("args.struct_size is {d}", .{a.struct_size});
    const tx = check.f32s("x", a.x, 2) orelse return invalid;
    const tokens = tx.shape[0];
    const tq = check.f32s("q_out", a.q_out, 3) orelse return invalid;
    const k_cache = cacheArg("k_cache", a.k_cache) orelse return invalid;
    const v_cache = cacheArg("v_cache", a.v_cache) orelse return invalid;
    const kv_heads = k_cache.shape[1];
    const k_dim = tq.shape[2];
    const v_dim = v_cache.shape[3];
    if (!check.size("q_out", tq, 0, tokens) or !check.size("k_cache", k_cache, 3, k_dim)) return invalid;
    for (0..3) |i| if (!check.size("v_cache", v_cache, i, k_cache.shape[i])) return invalid;
    if (tq.stride[1] != k_dim * 4) return status.invalid("q_out heads are {d} bytes apart, expected {d}", .{ tq.stride[1], k_dim * 4 });
    const wq = mm.Weight.from("wq", ctx, a.wq, tx.shape[1]) orelse return invalid;
    const wk = mm.Weight.from("wk", ctx, a.wk, tx.shape[1]) orelse return invalid;
    const wv = mm.Weight.from("wv", ctx, a.wv, tx.shape[1]) orelse return invalid;
    if (!check.size("wq", wq.tensor, 0, tq.shape[1] * k_dim)) return invalid;
    if (!check.size("wk", wk.tensor, 0, kv_heads * k_dim)) return invalid;
    if (!check.size("wv", wv.tensor, 0, kv_heads * v_dim)) return invalid;
    const slots = check.i32s("slot_mapping", a.slot_mapping, 1) orelse return invalid;
    if (!check.size("slot_mapping", slots, 0, tokens)) return invalid;
    const slot_values: [*]const i32 = @ptrCast(@alignCast(slots.data.?));
    const slots_end = k_cache.shape[0] * k_cache.shape[2];
    for (slot_values[0..@intCast(tokens)]) |slot| {
        if (slot >= slots_end) return status.invalid("slot {d} is outside a cache of {d} tokens", .{ slot, slots_end });
    }
    var rope: ?check.Rows = null;
    if (a.rope_table != null) {
        const table = check.f32s("rope_table", a.rope_table, 2) orelse return invalid;
        if (!check.size("rope_table", table, 0, tokens)) return invalid;
        if (table.shape[1] > k_dim or @rem(table.shape[1], 2) != 0) return status.invalid("rope_table has {d} columns for heads of {d}", .{ table.shape[1], k_dim });
        rope = check.rows("rope_table", table) orelse return invalid;
    }
    if (a.unit_qk_norm > 1 or (a.unit_qk_norm == 1 and (a.q_norm != null or a.k_norm != null)))
        return status.invalid("unit_qk_norm is {d}, expected 0, or 1 without q_norm and k_norm", .{a.unit_qk_norm});
    const whole_norms = isWhole(a.q_norm, k_dim) or isWhole(a.k_norm, k_dim);
    const q_size = if (whole_norms) tq.shape[1] * k_dim else k_dim;
    const k_size = if (whole_norms) kv_heads * k_dim else k_dim;
    const unit_norm: mm.Norm = .{ .weight = null, .eps = a.qk_eps, .offset = 0 };
    const norm = normOf("norm_weight", a.norm_weight, a.eps, a.norm_offset, tx.shape[1]) catch return invalid;
    const input = mm.Input.init(ctx, check.rows("x", tx) orelse return invalid, norm, &.{ wq, wk, wv });
    const all_rows = wq.rows + wk.rows + wv.rows;
    var layout: mm.Scratch = .{};
    const copies = layout.add(input.scratchBytes());
    const per_thread = mm.matmulScratch(ctx, wq.cols);
    const scratch = layout.add(per_thread * ctx.pool.num_threads);
    const k_out = layout.add(input.tokens * wk.rows * 4);
    const v_out = layout.add(input.tokens * wv.rows * 4);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;
    var region: Qkv = .{
        .input = input,
        .weights = .{ wq, wk, wv },
        .tasks = .{
            mm.Tasks.among(ctx, wq, all_rows, mm.bytes_per_task, input.tokens, input.tile_tokens),
            mm.Tasks.among(ctx, wk, all_rows, mm.bytes_per_task, input.tokens, input.tile_tokens),
            mm.Tasks.among(ctx, wv, all_rows, mm.bytes_per_task, input.tokens, input.tile_tokens),
        },
        .biases = .{
            mm.vector("bq", a.bq, @intCast(wq.rows)) catch return invalid,
            mm.vector("bk", a.bk, @intCast(wk.rows)) catch return invalid,
            mm.vector("bv", a.bv, @intCast(wv.rows)) catch return invalid,
        },
        .out_strides = .{ if (input.tokens == 1) wq.rows else @intCast(@divExact(tq.stride[0], 4)), wk.rows, wv.rows },
        .heads = @intCast(tq.shape[1]),
        .kv_heads = @intCast(kv_heads),
        .k_dim = @intCast(k_dim),
        .v_dim = @intCast(v_dim),
        .q_norm = if (a.unit_qk_norm != 0) unit_norm else normOf("q_norm", a.q_norm, a.qk_eps, a.qk_norm_offset, q_size) catch return invalid,
        .k_norm = if (a.unit_qk_norm != 0) unit_norm else normOf("k_norm", a.k_norm, a.qk_eps, a.qk_norm_offset, k_size) catch return invalid,
        .whole_norms = whole_norms,
        .rope = rope,
        .interleaved = a.interleaved,
        .slots = slot_values,
        .slots_end = slots_end,
        .k_cache = k_cache,
        .v_cache = v_cache,
        .scratch = memory + scratch,
        .scratch_bytes = per_thread,
    };
    region.input.copies = memory + copies;
    region.outs = .{ @ptrCast(@alignCast(tq.data.?)), @ptrCast(@alignCast(memory + k_out)), @ptrCast(@alignCast(memory + v_out)) };
    ctx.pool.run(&region, Qkv.body);
    return c.KT_OK;
}
