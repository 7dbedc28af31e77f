//! kt_rms_norm, kt_add_rms_norm: rows over the pool.
const core = @import("core");
const ctx_mod = @import("ctx.zig");
const check = @import("check.zig");
const Member = @import("pool.zig").Member;
const c = core.c;
const invalid = c.KT_ERR_INVALID_ARG;

const rows_per_chunk = 8;

const Job = struct {
    ctx: *ctx_mod.Ctx,
    x: check.Rows,
    residual: ?check.Rows,
    out: check.Rows,
    weight: ?[*]const f32,
    eps: f32,
    offset: f32,

    fn body(self: *const Job, member: *Member) void {
        const chunks = (self.x.count + rows_per_chunk - 1) / rows_per_chunk;
        while (member.claim(0, chunks)) |chunk| {
            const end = @min(self.x.count, (chunk + 1) * rows_per_chunk);
            for (chunk * rows_per_chunk..end) |row| {
                var source = self.x.f32Row(row);
                if (self.residual) |residual| {
                    self.ctx.isa.add_row.?(residual.f32Row(row), source, residual.f32Row(row), self.x.n);
                    source = residual.f32Row(row);
                }
                self.ctx.isa.rms_norm_row.?(source, self.weight, self.eps, self.offset, self.out.f32Row(row), self.x.n);
            }
        }
    }
};

pub fn kt_rms_norm(handle: ?*c.kt_ctx_t, x: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, eps: f32, offset: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    return run(handle, null, x, weight, eps, offset, out);
}

pub fn kt_add_rms_norm(handle: ?*c.kt_ctx_t, residual: ?*const c.kt_tensor_t, x: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, eps: f32, offset: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    if (residual == null) return core.status.invalid("residual is NULL", .{});
    return run(handle, residual, x, weight, eps, offset, out);
}

fn run(handle: ?*c.kt_ctx_t, residual: ?*const c.kt_tensor_t, x: ?*const c.kt_tensor_t, weight: ?*const c.kt_tensor_t, eps: f32, offset: f32, out: ?*const c.kt_tensor_t) c.kt_status_t {
    const ctx = ctx_mod.from(handle) orelse return invalid;
    const ndim = if (x) |t| t.ndim else 0;
    const tx = check.f32s("x", x, ndim) orelse return invalid;
    const to = check.f32s("out", out, ndim) orelse return invalid;
    var values: ?[*]const f32 = null;
    if (weight != null) {
        const tw = check.f32s("weight", weight, 1) orelse return invalid;
        if (!check.size("weight", tw, 0, tx.shape[ndim - 1])) return invalid;
        values = @ptrCast(@alignCast(tw.data.?));
    }
    for (0..ndim) |i| if (!check.size("out", to, i, tx.shape[i])) return invalid;
    var job: Job = .{
        .ctx = ctx,
        .x = check.rows("x", tx) orelse return invalid,
        .residual = null,
        .out = check.rows("out", to) orelse return invalid,
        .weight = values,
        .eps = eps,
        .offset = offset,
    };
    if (residual != null) {
        const tr = check.f32s("residual", residual, ndim) orelse return invalid;
        for (0..ndim) |i| if (!check.size("residual", tr, i, tx.shape[i])) return invalid;
        job.residual = check.rows("residual", tr) orelse return invalid;
    }
    ctx.pool.run(&job, Job.body);
    return c.KT_OK;
}
