//! kt_quantize: rows of floats into blocks of a weight type.
const std = @import("std");
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Values of one claimed piece: searches cost microseconds a block, so that small pieces balance the threads.
const piece_values = 16384;

/// Block of a type that rows can be written in; Q8_K is for activations only.
fn outBlock(dtype: u32) ?check.Block {
    return if (check.isWeightType(dtype) and dtype != c.KT_Q8_K) check.blockOf(dtype) else null;
}

const no_row = std.math.maxInt(usize);

const Job = struct {
    ctx: *ctx_mod.Ctx,
    dtype: u32,
    src: check.Rows,
    importance: ?[*]const f32,
    out: [*]u8,
    out_stride: usize,
    rows_per_piece: usize,
    /// Lowest row that holds a value which is not finite.
    bad_row: std.atomic.Value(usize) = .init(no_row),

    fn body(self: *Job, member: *Member) void {
        const pieces = std.math.divCeil(usize, self.src.count, self.rows_per_piece) catch unreachable;
        while (member.claim(0, pieces)) |index| {
            const first = index * self.rows_per_piece;
            for (first..@min(self.src.count, first + self.rows_per_piece)) |row| self.one(row);
        }
    }

    fn one(self: *Job, row: usize) void {
        const out = self.out + row * self.out_stride;
        if (self.ctx.isa.quantize_weights.?(self.dtype, self.src.f32Row(row), self.importance, out, self.src.n) == 0)
            _ = self.bad_row.fetchMin(row, .monotonic);
    }
};

export fn kt_quantize(handle: ?*c.kt_ctx_t, src: ?*const c.kt_tensor_t, importance: ?*const c.kt_tensor_t, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ts = check.f32s("src", src, 2) orelse return invalid;
    const to = out orelse return core.status.invalid("out is NULL", .{});
    if (to.data == null) return core.status.invalid("out has no data", .{});
    if (to.ndim != 2) return core.status.invalid("out has {d} dimensions, expected 2", .{to.ndim});
    const block = outBlock(to.dtype) orelse return core.status.unsupported("rows cannot be quantised to type {d}", .{to.dtype});
    for (0..2) |i| if (!check.size("out", to, i, ts.shape[i])) return invalid;
    if (@rem(ts.shape[1], block.values) != 0)
        return core.status.invalid("rows of {d} values are no multiple of the {d} in a block of type {d}", .{ ts.shape[1], block.values, to.dtype });
    if (to.flags & c.KT_TENSOR_PACKED != 0 or to.stride[1] != block.bytes)
        return core.status.invalid("out has an inner stride of {d} bytes, expected {d}", .{ to.stride[1], block.bytes });
    if (to.stride[0] < @divExact(ts.shape[1], block.values) * block.bytes)
        return core.status.invalid("out has rows {d} bytes apart, which overlap", .{to.stride[0]});
    var weights: ?[*]const f32 = null;
    if (importance) |given| {
        const ti = check.f32s("importance", given, 1) orelse return invalid;
        if (!check.size("importance", ti, 0, ts.shape[1])) return invalid;
        weights = @ptrCast(@alignCast(ti.data.?));
    }
    var job: Job = .{
        .ctx = ctx,
        .dtype = to.dtype,
        .src = check.rows("src", ts) orelse return invalid,
        .importance = weights,
        .out = @ptrCast(to.data.?),
        .out_stride = @intCast(to.stride[0]),
        .rows_per_piece = @max(1, piece_values / @as(usize, @intCast(ts.shape[1]))),
    };
    ctx.pool.run(&job, Job.body);
    const bad = job.bad_row.load(.monotonic);
    if (bad != no_row) return core.status.invalid("row {d} of src holds a value that is not finite", .{bad});
    return c.KT_OK;
}
