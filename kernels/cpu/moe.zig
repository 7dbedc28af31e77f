//! kt_fused_experts: tokens grouped by expert, then one list of tasks over (expert, rows): gate, up and activation, and one for
//! down. A down task waits for its own expert's intermediate values only, which are finished long before in all but the last.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const mm = @import("matmul.zig");
const groups = @import("moe_groups.zig");
const offsetBack = @import("fused.zig").offsetBack;
const Member = @import("pool.zig").Member;
const c = core.c;
const status = core.status;
const isa = ctx_mod.isa;
const invalid = c.KT_ERR_INVALID_ARG;

const Arg = ?*const c.kt_tensor_t;
const Active = groups.Active;
const Rows = mm.Pieces;

/// Up to this many rows of input every thread prepares its own copy: cheaper than waiting for each other.
const max_private = 2;
/// Up to this many pairs the thread that finishes some rows of all experts adds them up at once; with more, all threads do after.
const max_immediate = 64;
/// Bytes of weights of one task, gate and up together, and down: little enough to balance, and long enough for the prefetchers.
const gate_up_bytes = 256 << 10;
const down_bytes = 128 << 10;
/// The same where tiles may take it: every task reads its expert's activations, which are larger than its weights.
const tile_factor = 2;
/// Columns that activations are quantised together in.
const quant_columns = 32;
const line = 64;
const never = std.math.maxInt(usize);
/// Of a token's result that are added up at a time.
const combined_rows = 256;
/// Of a stream of weights that are asked for before it begins.
const prefetch_bytes = 2048;

const Pending = struct {
    count: std.atomic.Value(u32) align(line),

    /// Whether this was the last.
    fn finish(self: *Pending) bool {
        return self.count.fetchSub(1, .acq_rel) == 1;
    }

    fn wait(self: *const Pending) void {
        var spins: u32 = 0;
        while (self.count.load(.acquire) != 0) {
            std.atomic.spinLoopHint();
            spins +%= 1;
            // the thread that works on it may have lost its core to this one
            if (spins % 512 == 0) std.Thread.yield() catch {};
        }
    }
};

/// The activations of one side (input or intermediate) of all pairs: int8 tiles, float rows, or both; bf16 tiles of experts
/// that have them.
const Side = struct {
    n: usize,
    int8: bool,
    float: bool,
    /// From so many pairs of an expert on its activations are bf16 tiles alone.
    least_bf16: usize,
    slot_bytes: usize,
    tiles: [*]u8 = undefined,
    rows: [*]f32 = undefined, // [pairs][n]

    fn init(ctx: *const ctx_mod.Ctx, n: usize, weights: []const mm.Weight) Side {
        var self: Side = .{ .n = n, .int8 = false, .float = false, .slot_bytes = 0, .least_bf16 = ctx.leastTiles() };
        for (weights) |w| {
            if (isInt8(ctx, w)) self.int8 = true else self.float = true;
            if (self.least_bf16 < never and ctx.isa.tile_takes.?(w.tensor.dtype) == 0) self.least_bf16 = never;
        }
        if (self.int8) self.slot_bytes = std.mem.alignForward(usize, n / quant_columns * @as(usize, @intCast(ctx.isa.act_token_bytes)), line);
        if (self.least_bf16 < never) self.slot_bytes = @max(self.slot_bytes, mm.bf16TileBytes(n) / groups.bf16_tile);
        return self;
    }

    fn tileBytes(self: Side, pairs: usize) usize {
        return groups.slotsBound(pairs, self.least_bf16) * self.slot_bytes;
    }

    fn rowBytes(self: Side, pairs: usize) usize {
        return if (self.float) pairs * self.n * 4 else 0;
    }
};

fn isInt8(ctx: *const ctx_mod.Ctx, w: mm.Weight) bool {
    return w.quantized and ctx.fast();
}

/// One projection of all experts: [experts, rows, cols], and biases [experts, rows].
const Matrices = struct {
    weight: mm.Weight,
    bias: ?[*]const f32,
    int8: bool,

    fn from(comptime name: []const u8, ctx: *ctx_mod.Ctx, w: Arg, bias: Arg) ?Matrices {
        const weight = mm.Weight.stack(name, ctx, w) orelse return null;
        var self: Matrices = .{ .weight = weight, .bias = null, .int8 = isInt8(ctx, weight) };
        if (bias == null) return self;
        const t = check.f32s(name ++ "_bias", bias, 2) orelse return null;
        if (!check.size(name ++ "_bias", t, 0, weight.tensor.shape[0]) or !check.size(name ++ "_bias", t, 1, weight.tensor.shape[1])) return null;
        if (t.stride[0] != t.shape[1] * 4) {
            _ = status.invalid(name ++ "_bias must be contiguous", .{});
            return null;
        }
        self.bias = @ptrCast(@alignCast(t.data.?));
        return self;
    }
};

/// The rows of input that experts see: the tokens', or one of its own for each choice where the weights scale the input.
const Sources = struct {
    x: check.Rows,
    weights: check.Rows,
    k: usize,
    scaled: bool,
    count: usize,

    fn of(self: Sources, choice: usize) usize {
        return if (self.scaled) choice else choice / self.k;
    }

    /// A source's row; a scaled one is made in `room`.
    fn row(self: Sources, index: usize, room: [*]f32) [*]const f32 {
        if (!self.scaled) return self.x.f32Row(index);
        const n: usize = @intCast(self.x.n);
        const weight = self.weights.f32Row(index / self.k)[index % self.k];
        for (room[0..n], self.x.f32Row(index / self.k)[0..n]) |*to, value| to.* = weight * value;
        return room;
    }
};

/// The sources as they are needed, each once: tiles of one token, and scaled rows.
const Prepared = struct {
    tiles: [*]u8,
    scaled: [*]f32,
    /// Both sources in one tile, where there are two.
    both: [*]u8,
};

const Room = struct { scratch: [*]u8, gate: [*]f32, up: [*]f32 };

const Experts = struct {
    ctx: *ctx_mod.Ctx,
    sources: Sources,
    private: bool,
    out: check.Rows,
    act: u32,
    gate: Matrices,
    up: Matrices,
    down: Matrices,
    active: []const Active,
    order: groups.Order,
    input: Side,
    middle: Side,
    gate_up_rows: Rows,
    down_rows: Rows,
    total_gate_up: usize,
    total_down: usize,
    immediate: bool,
    /// The sum is added to out.
    adds: bool,
    /// Gate and up tasks to come, an expert each.
    inner: [*]Pending = undefined,
    /// Down tasks to come, for each range of rows and, last, all of them.
    outer: [*]Pending = undefined,
    prepared: [*]u8 = undefined,
    prepared_bytes: usize,
    result: [*]f32 = undefined, // [pairs][hidden]
    rooms: [*]u8 = undefined,
    room_bytes: usize,
    scratch_bytes: usize,
    /// Some expert's input is not bf16 tiles.
    plain: bool = true,

    fn body(self: *const Experts, member: *Member) void {
        const at = self.rooms + member.index * self.room_bytes;
        const buffers: [*]f32 = @ptrCast(@alignCast(at + self.scratch_bytes));
        const room: Room = .{ .scratch = at, .gate = buffers, .up = buffers + (self.room_bytes - self.scratch_bytes) / 8 };
        const prepared = self.prepare(member);
        var gate_up = self.claim(member, 2, "first_gate_up", &self.gate_up_rows);
        while (gate_up) |t| {
            self.prefetch(t, &self.up);
            self.gateProduct(t, prepared, room);
            gate_up = self.claim(member, 2, "first_gate_up", &self.gate_up_rows);
            if (gate_up) |next| self.prefetch(next, &self.gate);
            self.upProduct(t, prepared, room);
        }
        var down = self.claim(member, 3, "first_down", &self.down_rows);
        while (down) |t| {
            down = self.claim(member, 3, "first_down", &self.down_rows);
            if (down) |next| self.prefetch(next, &self.down);
            self.downTask(t, room);
        }
        if (self.immediate) return;
        self.outer[self.down_rows.total].wait();
        while (member.claim(4, self.out.count)) |token| self.combine(token, 0, self.down.weight.rows);
    }

    // ---- input ----

    fn preparedOf(self: *const Experts, index: usize) Prepared {
        const at = self.prepared + index * self.prepared_bytes;
        const both = at + self.sources.count * self.input.slot_bytes;
        return .{ .tiles = at, .both = both, .scaled = @ptrCast(@alignCast(both + if (self.private) 2 * self.input.slot_bytes else 0)) };
    }

    fn preparedBytes(self: *const Experts) usize {
        const tiles = (self.sources.count + if (self.private) @as(usize, 2) else 0) * self.input.slot_bytes;
        return tiles + if (self.sources.scaled) self.sources.count * self.input.n * 4 else 0;
    }

    /// Quantises each source once, then gathers them for the experts that several tokens chose.
    fn prepare(self: *const Experts, member: *Member) Prepared {
        const prepared = self.preparedOf(if (self.private) member.index else 0);
        if (self.private) {
            for (0..self.sources.count) |source| self.prepareSource(prepared, source);
            return prepared;
        }
        if ((self.input.int8 and self.plain) or self.sources.scaled) {
            while (member.claim(0, self.sources.count)) |source| self.prepareSource(prepared, source);
            member.barrier();
        }
        while (member.claim(1, self.active.len)) |index| self.gather(&self.active[index], prepared);
        member.barrier();
        return prepared;
    }

    fn prepareSource(self: *const Experts, prepared: Prepared, source: usize) void {
        const n: i64 = @intCast(self.input.n);
        const row = self.sources.row(source, prepared.scaled + source * self.input.n);
        if (!self.input.int8 or !self.plain) return;
        self.ctx.isa.quantize_row.?(row, n, prepared.tiles + source * self.input.slot_bytes, 1, 0);
        if (self.private and self.sources.count == 2) self.ctx.isa.quantize_row.?(row, n, prepared.both, 2, @intCast(source));
    }

    fn gather(self: *const Experts, e: *const Active, prepared: Prepared) void {
        const n = self.input.n;
        if (bf16(e)) {
            for (0..e.slots()) |slot| {
                const row: ?[*]const f32 = if (slot < e.pairs) self.sourceRow(prepared, self.sources.of(self.order.pair_choice[e.first_pair + slot])) else null;
                const to = self.input.tiles + (e.first_slot + slot / groups.bf16_tile * groups.bf16_tile) * self.input.slot_bytes;
                self.ctx.isa.tile_row.?(row orelse null, @intCast(n), to, @intCast(slot % groups.bf16_tile));
            }
            return;
        }
        if (e.pairs == 1) return;
        for (0..e.slots()) |slot| {
            const source = if (slot < e.pairs) self.sources.of(self.order.pair_choice[e.first_pair + slot]) else null;
            if (self.input.int8) {
                const tile = tileOf(e, slot);
                const to = self.input.tiles + (e.first_slot + tile.first) * self.input.slot_bytes;
                if (source) |index| {
                    self.ctx.isa.copy_act.?(prepared.tiles + index * self.input.slot_bytes, 1, 0, to, tile.tokens, @intCast(slot - tile.first), @intCast(n));
                } else {
                    self.ctx.isa.quantize_row.?(null, @intCast(n), to, tile.tokens, @intCast(slot - tile.first));
                }
            }
            if (self.input.float) if (source) |index| {
                const row = self.sourceRow(prepared, index);
                @memcpy((self.input.rows + (e.first_pair + slot) * n)[0..n], row[0..n]);
            };
        }
    }

    fn sourceRow(self: *const Experts, prepared: Prepared, source: usize) [*]const f32 {
        return if (self.sources.scaled) prepared.scaled + source * self.input.n else self.sources.x.f32Row(source);
    }

    /// Where an expert's input lies: that of one token is the token's own.
    fn inputOperand(self: *const Experts, e: *const Active, prepared: Prepared) Operand {
        const side = &self.input;
        if (bf16(e)) return self.sideOperand(side, e);
        if (e.pairs == 1) {
            const source = self.sources.of(self.order.pair_choice[e.first_pair]);
            return .{ .tiles = prepared.tiles + source * side.slot_bytes, .x = self.sourceRow(prepared, source), .x_stride = side.n };
        }
        if (self.private) return .{
            .tiles = prepared.both,
            .x = self.sourceRow(prepared, 0),
            .x_stride = if (self.sources.scaled) side.n else self.sources.x.stride / 4,
        };
        return self.sideOperand(side, e);
    }

    fn sideOperand(_: *const Experts, side: *const Side, e: *const Active) Operand {
        return .{
            .tiles = if (side.int8 or bf16(e)) side.tiles + e.first_slot * side.slot_bytes else undefined,
            .x = if (side.float) side.rows + e.first_pair * side.n else undefined,
            .x_stride = side.n,
        };
    }

    // ---- tasks ----

    /// The next task of a projection, of this member's node while there are any. The task before need not be finished.
    fn claim(self: *const Experts, member: *Member, phase: usize, comptime field: []const u8, cut: *const Rows) ?Task {
        const nodes = self.ctx.pool.num_nodes;
        const total = if (phase == 2) self.total_gate_up else self.total_down;
        const at = member.claimPlaced(phase, total / nodes) orelse return null;
        const index = groups.find(self.active, at.index * nodes, field);
        const e = &self.active[index];
        const local = cut.global(.{ .node = at.node, .index = at.index - @field(e, field) / nodes });
        const part = local % cut.total;
        return .{ .index = index, .e = e, .part = part, .rows = cut.range(part), .tokens = e.tokens(local / cut.total) };
    }

    /// Asks for the beginning of a task's weights, which the next product but one reads.
    fn prefetch(self: *const Experts, t: Task, m: *const Matrices) void {
        const from = m.weight.rowAddress(self.ctx, t.e.expert, t.rows[0]);
        var ahead: usize = 0;
        while (ahead < @max(prefetch_bytes, @as(usize, @intCast(self.ctx.ahead)))) : (ahead += line) @prefetch(@as([*]const u8, @ptrFromInt(from + ahead)), .{});
    }

    fn gateProduct(self: *const Experts, t: Task, prepared: Prepared, room: Room) void {
        self.product(t, &self.gate, self.inputOperand(t.e, prepared), self.input.slot_bytes, room.gate, self.gate_up_rows.per_piece, room.scratch);
    }

    /// The second half of a task of gate and up: up, the activation, and its result in the form that down reads.
    fn upProduct(self: *const Experts, t: Task, prepared: Prepared, room: Room) void {
        const table = self.ctx.isa;
        const e = t.e;
        const stride = self.gate_up_rows.per_piece;
        const count = t.rows[1] - t.rows[0];
        self.product(t, &self.up, self.inputOperand(e, prepared), self.input.slot_bytes, room.up, stride, room.scratch);
        const end = if (t.tokens[1] == e.pairs and self.middle.int8 and !bf16(e)) e.slots() else t.tokens[1];
        for (t.tokens[0]..end) |slot| {
            const at = (slot - t.tokens[0]) * stride;
            const to = if (self.middle.int8 or bf16(e)) room.gate + at else self.middle.rows + (e.first_pair + slot) * self.middle.n + t.rows[0];
            if (slot < e.pairs) table.act_mul_row.?(self.act, room.gate + at, room.up + at, to, @intCast(count));
            const tile = tileOf(e, slot);
            if (bf16(e)) {
                // whole steps of columns lie one after the other
                const step = groups.bf16_tile * quant_columns * 2;
                const out = self.middle.tiles + (e.first_slot + tile.first) * self.middle.slot_bytes + t.rows[0] / quant_columns * step;
                table.tile_row.?(to, @intCast(count), out, @intCast(slot - tile.first));
                continue;
            }
            if (!self.middle.int8) continue;
            const block: usize = @as(usize, @intCast(tile.tokens)) * @as(usize, @intCast(table.act_token_bytes));
            const out = self.middle.tiles + (e.first_slot + tile.first) * self.middle.slot_bytes + t.rows[0] / quant_columns * block;
            table.quantize_row.?(if (slot < e.pairs) to else null, @intCast(count), out, tile.tokens, @intCast(slot - tile.first));
        }
        _ = self.inner[t.index].finish();
    }

    fn downTask(self: *const Experts, t: Task, room: Room) void {
        const hidden = self.down.weight.rows;
        const out = self.result + (t.e.first_pair + t.tokens[0]) * hidden + t.rows[0];
        self.inner[t.index].wait();
        self.product(t, &self.down, self.sideOperand(&self.middle, t.e), self.middle.slot_bytes, out, hidden, room.scratch);
        if (!self.immediate) {
            _ = self.outer[self.down_rows.total].finish();
        } else if (self.outer[t.part].finish()) {
            for (0..self.out.count) |token| self.combine(token, t.rows[0], t.rows[1]);
        }
    }

    /// Rows of one expert's matrix for some of its tokens, to out [tokens][out_stride]. This is where another kernel for many
    /// tokens is chosen, which has its own form of the operand (prepare, and the end of gateUpTask).
    fn product(self: *const Experts, t: Task, m: *const Matrices, operand: Operand, slot_bytes: usize, out: [*]f32, out_stride: usize, scratch: [*]u8) void {
        const e = t.e;
        const rows = t.rows;
        const tokens = t.tokens;
        var job = mm.weightJob(self.ctx, m.weight);
        job.w = m.weight.matrix(self.ctx, e.expert, rows[0]);
        job.x = operand.x;
        job.x_stride = @intCast(operand.x_stride);
        if (m.bias) |bias| job.bias = bias + e.expert * m.weight.rows;
        job.out_stride = @intCast(out_stride);
        // the kernels index the whole output
        job.out = offsetBack(out, tokens[0] * out_stride + rows[0]);
        const matmul = self.ctx.isa.matmul.?;
        if (!m.int8 and !bf16(e)) return matmul(&job, @intCast(rows[0]), @intCast(rows[1]), @intCast(tokens[0]), @intCast(tokens[1]), scratch);
        const full = @min(tokens[1], e.full);
        if (tokens[0] < full) {
            job.acts = operand.tiles;
            job.tile_tokens = @intCast(e.tile);
            job.tile_bytes = @intCast(e.tile * slot_bytes);
            matmul(&job, @intCast(rows[0]), @intCast(rows[1]), @intCast(tokens[0]), @intCast(full), scratch);
        }
        if (tokens[1] > full) {
            job.acts = operand.tiles + full * slot_bytes;
            job.tile_tokens = @intCast(e.rest_tile);
            job.tile_bytes = @intCast(e.rest_tile * slot_bytes);
            job.out = offsetBack(out, rows[0]) + (full - tokens[0]) * out_stride;
            matmul(&job, @intCast(rows[0]), @intCast(rows[1]), 0, @intCast(tokens[1] - full), scratch);
        }
    }

    /// The weighted sum of a token's experts, in the router's order.
    fn combine(self: *const Experts, token: usize, row0: usize, row1: usize) void {
        const table = self.ctx.isa;
        const hidden = self.down.weight.rows;
        const k = self.sources.k;
        var row = row0;
        while (row < row1) : (row += combined_rows) {
            const count = @min(combined_rows, row1 - row);
            var sum = [_]f32{0} ** combined_rows;
            for (0..k) |choice| {
                const weight = if (self.sources.scaled) 1 else self.sources.weights.f32Row(token)[choice];
                table.add_scaled_row.?(self.result + self.order.choice_pair[token * k + choice] * hidden + row, weight, &sum, @intCast(count));
            }
            const out = self.out.f32Row(token) + row;
            if (self.adds) table.add_row.?(out, &sum, out, @intCast(count)) else @memcpy(out[0..count], sum[0..count]);
        }
    }
};

/// Some rows of an expert's matrices for some of its tokens.
const Task = struct { index: usize, e: *const Active, part: usize, rows: [2]usize, tokens: [2]usize };

const Operand = struct { tiles: [*]const u8, x: [*]const f32, x_stride: usize };

const Tile = struct { first: usize, tokens: i32 };

fn tileOf(e: *const Active, slot: usize) Tile {
    if (slot >= e.full) return .{ .first = e.full, .tokens = @intCast(e.rest_tile) };
    return .{ .first = slot / e.tile * e.tile, .tokens = @intCast(e.tile) };
}

fn bf16(e: *const Active) bool {
    return e.tile == groups.bf16_tile;
}

/// Whether a token has an expert twice: then tokens of one expert are not all different.
fn repeats(ids: []const i32, k: usize) bool {
    var start: usize = 0;
    while (start < ids.len) : (start += k) {
        for (ids[start..][0..k], 0..) |id, j| if (std.mem.indexOfScalar(i32, ids[start..][0..j], id) != null) return true;
    }
    return false;
}

pub fn kt_fused_experts(handle: ?*c.kt_ctx_t, args: ?*const c.kt_experts_args_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const a = args orelse return status.invalid("args are NULL", .{});
    if (a.struct_size < @sizeOf(c.kt_experts_args_t)) return status.invalid("args.struct_size is {d}", .{a.struct_size});
    if (a.flags & ~@as(u32, c.KT_EXPERTS_SCALE_INPUT | c.KT_EXPERTS_ADD) != 0) return status.invalid("args.flags is {d}", .{a.flags});
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
    const threads = ctx.pool.num_threads;
    const scaled = a.flags & c.KT_EXPERTS_SCALE_INPUT != 0;
    var region: Experts = .{
        .ctx = ctx,
        .sources = .{
            .x = check.rows("x", tx) orelse return invalid,
            .weights = check.rows("weights", tweights) orelse return invalid,
            .k = k,
            .scaled = scaled,
            .count = if (scaled) pairs else tokens,
        },
        .private = (if (scaled) pairs else tokens) <= max_private and !repeats(id_values, k),
        .out = check.rows("out", to) orelse return invalid,
        .act = a.act,
        .gate = gate,
        .up = up,
        .down = down,
        .active = &.{},
        .order = undefined,
        .input = .init(ctx, wg.cols, &.{ wg, wu }),
        .middle = .init(ctx, wg.rows, &.{wd}),
        .gate_up_rows = undefined,
        .down_rows = undefined,
        .total_gate_up = 0,
        .total_down = 0,
        .immediate = pairs <= max_immediate,
        .adds = a.flags & c.KT_EXPERTS_ADD != 0,
        .prepared_bytes = 0,
        .room_bytes = 0,
        .scratch_bytes = @max(mm.matmulScratch(ctx, wg.cols), mm.matmulScratch(ctx, wd.cols)),
    };
    region.prepared_bytes = std.mem.alignForward(usize, region.preparedBytes(), line);

    // the tasks' sizes depend on how many experts are active, which is bounded here and counted below
    const block: usize = @intCast(ctx.isa.row_block);
    const bound = @min(pairs, num_experts);
    // both projections' activations are bf16 tiles, or neither's
    const least_bf16 = if (region.private) never else @max(region.input.least_bf16, region.middle.least_bf16);
    region.input.least_bf16 = least_bf16;
    region.middle.least_bf16 = least_bf16;
    const unit = if (region.middle.int8 or least_bf16 < never) @max(block, quant_columns) else block;
    const down_unit = if (least_bf16 < never) unit else block;
    const factor: usize = if (least_bf16 < never) tile_factor else 1;
    region.gate_up_rows = .of(ctx, wg.rows, groups.rowsPerTask(wg.rows, unit, wg.bytesPerRow() + wu.bytesPerRow(), factor * gate_up_bytes, bound, threads));
    region.down_rows = .of(ctx, wd.rows, groups.rowsPerTask(wd.rows, down_unit, wd.bytesPerRow(), factor * down_bytes, bound, threads));
    const buffer = std.mem.alignForward(usize, region.gate_up_rows.per_piece * groups.taskTokens(pairs) * 4, line);
    region.room_bytes = region.scratch_bytes + 2 * buffer;

    var layout: mm.Scratch = .{};
    const active_at = layout.add(bound * @sizeOf(Active));
    const pair_choice_at = layout.add(pairs * 4);
    const choice_pair_at = layout.add(pairs * 4);
    const counts_at = layout.add(num_experts * 4);
    const inner_at = layout.add(bound * @sizeOf(Pending));
    const outer_at = layout.add((region.down_rows.total + 1) * @sizeOf(Pending));
    const prepared_at = layout.add(region.prepared_bytes * if (region.private) threads else 1);
    const input_tiles_at = layout.add(if (region.private) 0 else region.input.tileBytes(pairs));
    const input_rows_at = layout.add(if (region.private) 0 else region.input.rowBytes(pairs));
    const middle_tiles_at = layout.add(region.middle.tileBytes(pairs));
    const middle_rows_at = layout.add(region.middle.rowBytes(pairs));
    const result_at = layout.add(pairs * wd.rows * 4);
    const rooms_at = layout.add(region.room_bytes * threads);
    const memory = layout.reserve(ctx) orelse return c.KT_ERR_OUT_OF_MEMORY;

    region.order = .{
        .pair_choice = @as([*]u32, @ptrCast(@alignCast(memory + pair_choice_at)))[0..pairs],
        .choice_pair = @as([*]u32, @ptrCast(@alignCast(memory + choice_pair_at)))[0..pairs],
    };
    const counts = @as([*]u32, @ptrCast(@alignCast(memory + counts_at)))[0..num_experts];
    const room = @as([*]Active, @ptrCast(@alignCast(memory + active_at)))[0..bound];
    const active = groups.group(id_values, room, region.order, counts, wg.packed_rows and wu.packed_rows and wd.packed_rows, least_bf16);
    region.inner = @ptrCast(@alignCast(memory + inner_at));
    region.outer = @ptrCast(@alignCast(memory + outer_at));
    region.plain = false;
    for (active, region.inner) |*e, *pending| {
        if (!bf16(e)) region.plain = true;
        e.first_gate_up = @intCast(region.total_gate_up);
        e.first_down = @intCast(region.total_down);
        const inner_tasks: u32 = @intCast(region.gate_up_rows.total * e.token_tasks);
        region.total_gate_up += inner_tasks;
        region.total_down += region.down_rows.total * e.token_tasks;
        pending.count = .init(inner_tasks);
    }
    for (region.outer[0..region.down_rows.total]) |*pending| pending.count = .init(@intCast(region.total_down / region.down_rows.total));
    region.outer[region.down_rows.total].count = .init(@intCast(region.total_down));
    region.active = active;
    region.prepared = memory + prepared_at;
    region.input.tiles = memory + input_tiles_at;
    region.input.rows = @ptrCast(@alignCast(memory + input_rows_at));
    region.middle.tiles = memory + middle_tiles_at;
    region.middle.rows = @ptrCast(@alignCast(memory + middle_rows_at));
    region.result = @ptrCast(@alignCast(memory + result_at));
    region.rooms = memory + rooms_at;
    ctx.pool.run(&region, Experts.body);
    return c.KT_OK;
}
