//! kt_add, kt_act_mul, kt_act: operands of one shape, row by row.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Values of one claimed piece; no more work than this in all is done by the caller alone.
const piece_values = 8192;

const Op = union(enum) { add, act_mul: u32, act: u32 };

const Job = struct {
    ctx: *ctx_mod.Ctx,
    op: Op,
    a: check.Rows,
    b: check.Rows,
    out: check.Rows,
    pieces_per_row: usize,

    fn piece(self: *const Job, index: usize) void {
        const row = index / self.pieces_per_row;
        const start = index % self.pieces_per_row * piece_values;
        const n: usize = @min(piece_values, @as(usize, @intCast(self.a.n)) - start);
        const a = self.a.f32Row(row) + start;
        const b = self.b.f32Row(row) + start;
        const out = self.out.f32Row(row) + start;
        switch (self.op) {
            .add => self.ctx.isa.add_row.?(a, b, out, @intCast(n)),
            .act_mul => |act| self.ctx.isa.act_mul_row.?(act, a, b, out, @intCast(n)),
            .act => |act| self.ctx.isa.act_row.?(act, a, out, @intCast(n)),
        }
    }

    fn body(self: *const Job, member: *Member) void {
        const pieces = self.a.count * self.pieces_per_row;
        const n: usize = @intCast(self.a.n);
        const per_claim = @max(1, piece_values / n);
        const claims = std.math.divCeil(usize, pieces, per_claim) catch unreachable;
        while (member.claim(0, claims)) |claimed| {
            const first = claimed * per_claim;
            for (first..@min(pieces, first + per_claim)) |index| self.piece(index);
        }
    }
};

pub fn kt_add(handle: ?*c.kt_ctx_t, a: ?*const c.kt_tensor_t, b: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ndim = if (a) |t| t.ndim else 0;
    if (ndim < 1 or ndim > 4) return core.status.invalid("a has {d} dimensions, expected 1 to 4", .{ndim});
    return run(handle, .add, "a", a, "b", b, ndim, out);
}

pub fn kt_act_mul(handle: ?*c.kt_ctx_t, gate: ?*const c.kt_tensor_t, up: ?*const c.kt_tensor_t, act: u32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    if (act > c.KT_ACT_SWIGLU_OAI) return core.status.invalid("act is {d}, expected 0 to {d}", .{ act, c.KT_ACT_SWIGLU_OAI });
    return run(handle, .{ .act_mul = act }, "gate", gate, "up", up, 2, out);
}

pub fn kt_act(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, act: u32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    if (act > c.KT_ACT_TANH or act == c.KT_ACT_SWIGLU_OAI) return core.status.invalid("act is {d}, expected 0 to {d} or {d}", .{ act, c.KT_ACT_RELU, c.KT_ACT_TANH });
    return run(handle, .{ .act = act }, "x", x, "x", x, 2, out);
}

fn run(
    handle: ?*c.kt_ctx_t,
    op: Op,
    comptime a_name: []const u8,
    a: ?*const c.kt_tensor_t,
    comptime b_name: []const u8,
    b: ?*const c.kt_tensor_t,
    ndim: u32,
    out: ?*const c.kt_tensor_t,
) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ta = check.f32s(a_name, a, ndim) orelse return invalid;
    const tb = check.f32s(b_name, b, ndim) orelse return invalid;
    const to = check.f32s("out", out, ndim) orelse return invalid;
    for (0..ndim) |i| {
        if (!check.size(b_name, tb, i, ta.shape[i])) return invalid;
        if (!check.size("out", to, i, ta.shape[i])) return invalid;
    }
    const rows = check.rows(a_name, ta) orelse return invalid;
    const job: Job = .{
        .ctx = ctx,
        .op = op,
        .a = rows,
        .b = check.rows(b_name, tb) orelse return invalid,
        .out = check.rows("out", to) orelse return invalid,
        .pieces_per_row = std.math.divCeil(usize, @intCast(rows.n), piece_values) catch unreachable,
    };
    if (rows.count * @as(usize, @intCast(rows.n)) <= piece_values) {
        for (0..rows.count) |row| job.piece(row);
    } else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
