//! kt_fused_experts: tokens grouped by expert, then gate+up+activation and down as task lists over (expert, rows).
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const offsetBack = @import("fused.zig").offsetBack;
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const isa = ctx_mod.isa;
const invalid = c.KT_ERR_INVALID_ARG;

const Arg = ?*const c.kt_tensor_t;

/// An expert that some tokens chose: its pairs (token, choice) are neighbours in the pair order.
const Active = struct {
    expert: u32,
    first_pair: u32,
    pairs: u32,
    tile_tokens: u32,
    /// Tiles of all active experts before this one.
    first_tile: u32,
    gate_up: mm.Tasks,
    down: mm.Tasks,
    /// Tasks of all active experts before this one.
    first_gate_up: usize,
    first_down: usize,
};

fn tileTokens(pairs: usize) u32 {
    return if (pairs <= 2) @intCast(pairs) else if (pairs <= 4) 4 else 8;
}

/// The activations of one side (input or intermediate) for all pairs: int8 tiles per expert, or float rows.
const Side = struct {
    n: usize,
    int8: bool,
    /// Bytes of a tile of 8 tokens; smaller tiles leave the rest unused.
    tile_bytes: usize,
    tiles: [*]u8 = undefined,
    rows: [*]f32 = undefined, // [pairs][n]
};

/// One projection of all experts: [experts, rows, cols], and biases [experts, rows].
const Matrices = struct {
    weight: mm.Weight,
    bias: ?[*]const f32,

    fn from(comptime name: []const u8, ctx: *ctx_mod.Ctx, w: Arg, bias: Arg) ?Matrices {
        const weight = mm.Weight.stack(name, ctx, w) orelse return null;
        if (bias == null) return .{ .weight = weight, .bias = null };
        const t = check.f32s(name ++ "_bias", bias, 2) orelse return null;
        if (!check.size(name ++ "_bias", t, 0, weight.tensor.shape[0]) or !check.size(name ++ "_bias", t, 1, weight.tensor.shape[1])) return null;
        if (t.stride[0] != t.shape[1] * 4) {
            _ = status.invalid(name ++ "_bias must be contiguous", .{});
            return null;
        }
        return .{ .weight = weight, .bias = @ptrCast(@alignCast(t.data.?)) };
    }
};

const Experts = struct {
    ctx: *ctx_mod.Ctx,
    x: check.Rows,
    out: check.Rows,
    weights: check.Rows,
    k: usize,
    act: u32,
    /// The router's weights multiply the input and not the output.
    scale_input: bool,
    gate: Matrices,
    up: Matrices,
    down: Matrices,
    active: []const Active,
    /// Pair -> its token * k + choice, and back.
    pair_choice: []const u32,
    choice_pair: []const u32,
    input: Side,
    middle: Side,
    total_tiles: usize,
    total_gate_up: usize,
    total_down: usize,
    result: [*]f32 = undefined, // [pairs][hidden]
    scratch: [*]u8 = undefined,
    scratch_bytes: usize,
    buffers: [*]u8 = undefined,
    buffer_bytes: usize,

    fn body(self: *const Experts, member: *Member) void {
        const table = self.ctx.isa;
        const scratch = self.scratch + member.index * self.scratch_bytes;
        while (member.claim(0, self.total_tiles)) |tile| self.fillTile(&self.input, tile, @ptrCast(@alignCast(scratch)));
        member.barrier();
        const buffer: [*]f32 = @ptrCast(@alignCast(self.buffers + member.index * self.buffer_bytes));
        const half = self.buffer_bytes / 8;
        while (member.claim(1, self.total_gate_up)) |claimed| {
            const e = self.find(claimed, "first_gate_up");
            const r = e.gate_up.range(claimed - e.first_gate_up);
            const stride = e.gate_up.rows_per_task;
            const corner = r.token0 * stride + r.row0;
            var gate_job = self.job(e, self.gate, &self.input, offsetBack(buffer, corner), stride);
            var up_job = self.job(e, self.up, &self.input, offsetBack(buffer + half, corner), stride);
            table.matmul.?(&gate_job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
            table.matmul.?(&up_job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
            for (r.token0..r.token1) |pair| {
                const line = (pair - r.token0) * stride;
                const to = self.middle.rows + (e.first_pair + pair) * self.middle.n + r.row0;
                table.act_mul_row.?(self.act, buffer + line, buffer + half + line, to, @intCast(r.row1 - r.row0));
            }
        }
        member.barrier();
        if (self.middle.int8) {
            while (member.claim(2, self.total_tiles)) |tile| self.fillTile(&self.middle, tile, null);
            member.barrier();
        }
        while (member.claim(3, self.total_down)) |claimed| {
            const e = self.find(claimed, "first_down");
            const r = e.down.range(claimed - e.first_down);
            const hidden = self.down.weight.rows;
            var down_job = self.job(e, self.down, &self.middle, self.result + e.first_pair * hidden, hidden);
            table.matmul.?(&down_job, @intCast(r.row0), @intCast(r.row1), @intCast(r.token0), @intCast(r.token1), scratch);
        }
        member.barrier();
        while (member.claim(4, self.x.count)) |token| self.combine(token);
    }

    /// Quantises (or, for float input, gathers) the rows of one tile, from the tokens where there is room to scale one in.
    fn fillTile(self: *const Experts, side: *const Side, tile: usize, token_room: ?[*]f32) void {
        var index = self.active.len - 1;
        while (self.active[index].first_tile > tile) index -= 1;
        const e = &self.active[index];
        const first = (tile - e.first_tile) * e.tile_tokens;
        for (0..e.tile_tokens) |slot| {
            const pair = first + slot;
            const present = pair < e.pairs;
            const at = e.first_pair + pair;
            const source: ?[*]const f32 = if (!present) null else if (token_room) |room| self.inputRow(self.pair_choice[at], room) else side.rows + at * side.n;
            if (side.int8) {
                self.ctx.isa.quantize_row.?(source orelse null, @intCast(side.n), side.tiles + tile * side.tile_bytes, @intCast(e.tile_tokens), @intCast(slot));
            } else if (source) |row| {
                @memcpy((side.rows + at * side.n)[0..side.n], row[0..side.n]);
            }
        }
    }

    /// What an expert sees of its token.
    fn inputRow(self: *const Experts, choice: usize, room: [*]f32) [*]const f32 {
        const row = self.x.f32Row(choice / self.k);
        if (!self.scale_input) return row;
        const weight = self.weights.f32Row(choice / self.k)[choice % self.k];
        for (room[0..self.input.n], row[0..self.input.n]) |*to, value| to.* = weight * value;
        return room;
    }

    fn find(self: *const Experts, task: usize, comptime field: []const u8) *const Active {
        var low: usize = 0;
        var high: usize = self.active.len;
        while (high - low > 1) {
            const middle = (low + high) / 2;
            if (@field(self.active[middle], field) <= task) low = middle else high = middle;
        }
        return &self.active[low];
    }

    fn job(self: *const Experts, e: *const Active, m: Matrices, side: *const Side, out: [*]f32, out_stride: usize) isa.kt_matmul_t {
        const w = m.weight;
        var result = mm.weightJob(w);
        const matrix: usize = if (w.packed_rows)
            @intCast(self.ctx.isa.packed_bytes.?(w.tensor.dtype, @intCast(w.rows), @intCast(w.cols)))
        else
            @intCast(w.tensor.stride[0]);
        result.w = @ptrFromInt(@intFromPtr(w.tensor.data.?) + e.expert * matrix);
        if (side.int8) {
            result.acts = side.tiles + e.first_tile * side.tile_bytes;
            result.tile_bytes = @intCast(side.tile_bytes);
        } else {
            result.x = side.rows + e.first_pair * side.n;
            result.x_stride = @intCast(side.n);
        }
        if (m.bias) |bias| result.bias = bias + e.expert * w.rows;
        result.tile_tokens = @intCast(e.tile_tokens);
        result.out = out;
        result.out_stride = @intCast(out_stride);
        return result;
    }

    /// The weighted sum of a token's experts, in the router's order.
    fn combine(self: *const Experts, token: usize) void {
        const hidden = self.down.weight.rows;
        const out = self.out.f32Row(token)[0..hidden];
        @memset(out, 0);
        for (0..self.k) |choice| {
            const weight = if (self.scale_input) 1 else self.weights.f32Row(token)[choice];
            const row = (self.result + self.choice_pair[token * self.k + choice] * hidden)[0..hidden];
            for (out, row) |*sum, value| sum.* += weight * value;
        }
    }
};

/// Groups the choices by expert: fills pair_choice and choice_pair, returns the number of active experts.
fn group(ids: []const i32, active: []Active, pair_choice: []u32, choice_pair: []u32, counts: []u32) usize {
    @memset(counts, 0);
    for (ids) |id| counts[@intCast(id)] += 1;
    var num_active: usize = 0;
    var next: u32 = 0;
    var tile: u32 = 0;
    for (counts, 0..) |*count, expert| {
        const pairs = count.*;
        count.* = next; // from here on: the next free pair of the expert
        if (pairs == 0) continue;
        const per_tile = tileTokens(pairs);
        active[num_active] = .{ .expert = @intCast(expert), .first_pair = next, .pairs = pairs, .tile_tokens = per_tile, .first_tile = tile, .gate_up = undefined, .down = undefined, .first_gate_up = 0, .first_down = 0 };
        num_active += 1;
        next += pairs;
        tile += (pairs + per_tile - 1) / per_tile;
    }
    for (ids, 0..) |id, choice| {
        const pair = counts[@intCast(id)];
        counts[@intCast(id)] += 1;
        pair_choice[pair] = @intCast(choice);
        choice_pair[choice] = pair;
    }
    return num_active;
}

export fn kt_fused_experts(handle: ?*c.kt_ctx_t, args: ?*const c.kt_experts_args_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const a = args orelse return status.invalid("args are NULL", .{});
    if (a.struct_size < @sizeOf(c.kt_experts_args_t)) return status.invalid("args.struct_size is {d}", .{a.struct_size});
    if (a.flags & ~@as(u32, c.KT_EXPERTS_SCALE_INPUT) != 0) return status.invalid("args.flags is {d}", .{a.flags});
    const tx = check.f32s("x", a.x, 2) orelse return invalid;
    const tids = check.i32s("ids", a.ids, 2) orelse return invalid;
    const tweights = check.f32s("weights", a.weights, 2) orelse return invalid;
    const to = check.f32s("out", a.out, 2) orelse return invalid;
    const gate = Matrices.from("gate", ctx, a.gate, a.gate_bias) orelse return invalid;
    const up = Matrices.from("up", ctx, a.up, a.up_bias) orelse return invalid;
    const down = Matrices.from("down", ctx, a.down, a.down_bias) orelse return invalid;
    const wg = gate.weight;
    const wu = up.weight;
    const wd = down.weight;
    const tokens: usize = @intCast(tx.shape[0]);
    const k: usize = @intCast(tids.shape[1]);
    const num_experts: usize = @intCast(wg.tensor.shape[0]);
    if (!check.size("ids", tids, 0, tx.shape[0]) or !check.size("weights", tweights, 0, tx.shape[0]) or !check.size("weights", tweights, 1, tids.shape[1])) return invalid;
    if (!check.size("gate", wg.tensor, 2, tx.shape[1])) return invalid;
    for (0..3) |i| if (!check.size("up", wu.tensor, i, wg.tensor.shape[i])) return invalid;
    if (!check.size("down", wd.tensor, 0, wg.tensor.shape[0]) or !check.size("down", wd.tensor, 1, tx.shape[1]) or !check.size("down", wd.tensor, 2, wg.tensor.shape[1])) return invalid;
    if (!check.size("out", to, 0, tx.shape[0]) or !check.size("out", to, 1, tx.shape[1])) return invalid;
    if (a.act > c.KT_ACT_SWIGLU_OAI) return status.invalid("act is {d}", .{a.act});
    if (tids.stride[0] != tids.shape[1] * 4 and tokens > 1) return status.invalid("ids must be contiguous", .{});
    const id_values = @as([*]const i32, @ptrCast(@alignCast(tids.data.?)))[0 .. tokens * k];
    for (id_values) |id| if (id < 0 or id >= num_experts) return status.invalid("expert {d} of {d}", .{ id, num_experts });

    const pairs = tokens * k;
    const hidden: usize = @intCast(tx.shape[1]);
    const fast = ctx.fast();
    const token_bytes: usize = @intCast(ctx.isa.act_token_bytes);
    var input: Side = .{ .n = hidden, .int8 = fast and wg.quantized and wu.quantized, .tile_bytes = std.mem.alignForward(usize, hidden / 32 * 8 * token_bytes, 64) };
    var middle: Side = .{ .n = wg.rows, .int8 = fast and wd.quantized, .tile_bytes = std.mem.alignForward(usize, wg.rows / 32 * 8 * token_bytes, 64) };
    if (fast and wg.quantized != wu.quantized) return status.unsupported("gate and up must both be quantised, or neither", .{});

    var layout: mm.Scratch = .{};
    const active_at = layout.add(@min(pairs, num_experts) * @sizeOf(Active));
    const pair_choice_at = layout.add(pairs * 4);
    const choice_pair_at = layout.add(pairs * 4);
    const counts_at = layout.add(num_experts * 4);
    const tiles_bound = pairs; // a tile holds at least one pair
    const input_at = layout.add(if (input.int8) tiles_bound * input.tile_bytes else pairs * hidden * 4);
    const middle_rows_at = layout.add(pairs * middle.n * 4);
    const middle_tiles_at = layout.add(if (middle.int8) tiles_bound * middle.tile_bytes else 0);
    const result_at = layout.add(pairs * hidden * 4);
    const per_thread = @max(mm.matmulScratch(ctx, wg.cols), mm.matmulScratch(ctx, wd.cols));
    const scratch_at = layout.add(per_thread * ctx.pool.num_threads);
    const block: usize = @intCast(ctx.isa.row_block);
    const rows_bound = @max(mm.Tasks.of(ctx, wg, 1, 1).rows_per_task, @max(64, block));
    const buffer_bytes = 2 * std.mem.alignForward(usize, rows_bound * tokens * 4, 64);
    const buffers_at = layout.add(buffer_bytes * ctx.pool.num_threads);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;

    const active = @as([*]Active, @ptrCast(@alignCast(memory + active_at)));
    const pair_choice = @as([*]u32, @ptrCast(@alignCast(memory + pair_choice_at)))[0..pairs];
    const choice_pair = @as([*]u32, @ptrCast(@alignCast(memory + choice_pair_at)))[0..pairs];
    const counts = @as([*]u32, @ptrCast(@alignCast(memory + counts_at)))[0..num_experts];
    const num_active = group(id_values, active[0..@min(pairs, num_experts)], pair_choice, choice_pair, counts);
    var total_gate_up: usize = 0;
    var total_down: usize = 0;
    var total_tiles: usize = 0;
    for (active[0..num_active]) |*e| {
        e.gate_up = mm.Tasks.of(ctx, wg, e.pairs, e.tile_tokens);
        e.down = mm.Tasks.of(ctx, wd, e.pairs, e.tile_tokens);
        e.first_gate_up = total_gate_up;
        e.first_down = total_down;
        total_gate_up += e.gate_up.total;
        total_down += e.down.total;
        total_tiles = e.first_tile + (e.pairs + e.tile_tokens - 1) / e.tile_tokens;
    }
    input.tiles = memory + input_at;
    input.rows = @ptrCast(@alignCast(memory + input_at));
    middle.tiles = memory + middle_tiles_at;
    middle.rows = @ptrCast(@alignCast(memory + middle_rows_at));
    const region: Experts = .{
        .ctx = ctx,
        .x = check.rows("x", tx) orelse return invalid,
        .out = check.rows("out", to) orelse return invalid,
        .weights = check.rows("weights", tweights) orelse return invalid,
        .k = k,
        .act = a.act,
        .scale_input = a.flags & c.KT_EXPERTS_SCALE_INPUT != 0,
        .gate = gate,
        .up = up,
        .down = down,
        .active = active[0..num_active],
        .pair_choice = pair_choice,
        .choice_pair = choice_pair,
        .input = input,
        .middle = middle,
        .total_tiles = total_tiles,
        .total_gate_up = total_gate_up,
        .total_down = total_down,
        .result = @ptrCast(@alignCast(memory + result_at)),
        .scratch = memory + scratch_at,
        .scratch_bytes = per_thread,
        .buffers = memory + buffers_at,
        .buffer_bytes = buffer_bytes,
    };
    ctx.pool.run(&region, Experts.body);
    return c.KT_OK;
}
