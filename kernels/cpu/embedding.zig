//! kt_embedding: rows gathered from a table of any weight type.
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

/// Fewer tokens than this are gathered by the caller alone: waking the pool costs more.
const serial_tokens = 4;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    dtype: u32,
    table: check.Rows,
    table_stride: usize,
    ids: []const i32,
    scale: f32,
    out: check.Rows,

    fn token(self: *const Job, index: usize) void {
        const id: usize = @intCast(self.ids[index]);
        const out = self.out.f32Row(index);
        self.ctx.isa.dequant_row.?(self.dtype, self.table.data + id * self.table_stride, out, self.out.n);
        if (self.scale != 1) self.ctx.isa.scale_row.?(out, self.scale, self.out.n);
    }

    fn body(self: *const Job, member: *Member) void {
        while (member.claim(0, self.ids.len)) |index| self.token(index);
    }
};

pub fn kt_embedding(handle: ?*c.kt_ctx_t, table: ?*const c.kt_tensor_t, ids: ?*const c.kt_tensor_t, scale: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const t = check.tensor("table", table, 2) orelse return invalid;
    const ti = check.i32s("ids", ids, 1) orelse return invalid;
    const to = check.f32s("out", out, 2) orelse return invalid;
    if (!check.isWeightType(t.dtype)) return core.status.invalid("table has type {d}, which is no weight type", .{t.dtype});
    if (t.flags & c.KT_TENSOR_PACKED != 0) return core.status.unsupported("table is packed: rows are gathered from the plain layout", .{});
    if (!check.size("out", to, 0, ti.shape[0])) return invalid;
    if (!check.size("out", to, 1, t.shape[1])) return invalid;
    const job: Job = .{
        .ctx = ctx,
        .dtype = t.dtype,
        .table = check.rows("table", t) orelse return invalid,
        .table_stride = @intCast(t.stride[0]),
        .ids = @as([*]const i32, @ptrCast(@alignCast(ti.data.?)))[0..@intCast(ti.shape[0])],
        .scale = scale,
        .out = check.rows("out", to) orelse return invalid,
    };
    for (job.ids, 0..) |id, index| {
        if (id < 0 or id >= t.shape[0])
            return core.status.invalid("ids[{d}] is {d}, the table has rows 0 to {d}", .{ index, id, t.shape[0] - 1 });
    }
    if (job.ids.len < serial_tokens) {
        for (0..job.ids.len) |index| job.token(index);
    } else ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
