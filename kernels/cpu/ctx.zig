//! A context: the ISA table, the thread pool, scratch memory and the precision of one engine.
const std = @import("std");
const builtin = @import("builtin");
const core = @import("core");
const cpuid = @import("cpuid.zig");
const Pool = @import("pool.zig").Pool;
const topology = @import("topology.zig");
const amx = @import("amx.zig");
const graphs = @import("graph.zig");
const Graph = graphs.Graph;
const c = core.c;
const status = core.status;

pub const isa = @cImport(@cInclude("isa_table.h"));

const magic: u64 = 0x6b745f6374780001; // "kt_ctx"
const default_spin_us = 2000;

pub const Ctx = struct {
    magic: u64 = magic,
    isa: *const isa.kt_isa_table_t,
    level: cpuid.Level,
    precision: u32,
    pool: *Pool,
    /// The system's number of each of the pool's nodes; null where nodes only divide the work.
    system_nodes: [topology.max_nodes]?u32 = [_]?u32{null} ** topology.max_nodes,
    scratch: []align(64) u8 = &.{},
    /// Counts how often scratch memory was given back.
    scratch_moves: u32 = 0,
    /// Of weights that are read once, so many bytes are asked for before they are read.
    ahead: i32 = 0,
    /// What ops are kept in and not computed.
    recording: ?*Graph = null,
    /// What is computed by a thread of its own.
    started: ?*graphs.Started = null,
    /// What its graphs took turns by last.
    turns: ?*c.kt_turns_t = null,

    pub fn isAlive(self: *const Ctx) bool {
        return self.magic == magic;
    }

    /// Memory for one call's intermediate results, grown as needed and kept. Valid until the next call of reserve.
    pub fn reserve(self: *Ctx, bytes: usize) error{OutOfMemory}![]align(64) u8 {
        if (self.scratch.len < bytes) {
            gpa.free(self.scratch);
            self.scratch = &.{};
            self.scratch_moves +%= 1;
            self.scratch = try gpa.alignedAlloc(u8, .@"64", std.mem.alignForward(usize, bytes + bytes / 4, 1 << 16));
        }
        return self.scratch[0..bytes];
    }

    pub fn fast(self: *const Ctx) bool {
        return self.precision == c.KT_PRECISION_FAST;
    }

    /// From how many tokens on products are the tile instructions', of weights whose type they take.
    pub fn leastTiles(self: *const Ctx) usize {
        return if (self.fast() and self.isa.tile_row != null) amx.leastTokens() else std.math.maxInt(usize);
    }
};

pub const gpa = std.heap.c_allocator;

/// The context behind a handle, or null with the error recorded.
pub fn from(handle: ?*c.kt_ctx_t) ?*Ctx {
    const pointer = handle orelse {
        _ = status.invalid("context is NULL", .{});
        return null;
    };
    const ctx: *Ctx = @ptrCast(@alignCast(pointer));
    if (!ctx.isAlive()) {
        _ = status.invalid("not a context, or one that was destroyed", .{});
        return null;
    }
    if (ctx.started) |started| started.join();
    return ctx;
}

/// The kernels of a level; the caller knows that this CPU runs it.
pub fn tableOf(level: cpuid.Level) *const isa.kt_isa_table_t {
    if (builtin.cpu.arch == .x86_64) return switch (level) {
        c.KT_ISA_AVX2 => isa.kt_isa_avx2(),
        c.KT_ISA_AVX512 => isa.kt_isa_avx512(),
        c.KT_ISA_AVX512BF16 => isa.kt_isa_avx512bf16(),
        c.KT_ISA_AMX => isa.kt_isa_amx(),
        else => isa.kt_isa_scalar(),
    };
    return switch (level) {
        c.KT_ISA_NEON => isa.kt_isa_neon(),
        c.KT_ISA_DOTPROD => isa.kt_isa_dotprod(),
        c.KT_ISA_I8MM => isa.kt_isa_i8mm(),
        else => isa.kt_isa_scalar(),
    };
}

fn chooseLevel(requested: u32, out: *cpuid.Level) status.Status {
    const mask = cpuid.isaMask();
    const strongest = cpuid.best(mask) orelse
        return status.unsupported("this CPU is below x86-64-v2 (it lacks SSE4.2 or POPCNT): no kernels for it", .{});
    var wanted = requested;
    if (wanted == c.KT_ISA_AUTO) {
        if (std.process.getEnvVarOwned(gpa, "KT_CPU_ISA")) |name| {
            defer gpa.free(name);
            if (name.len > 0) wanted = cpuid.levelByName(name) orelse
                return status.invalid("KT_CPU_ISA={s}: expected scalar, avx2, avx512, avx512bf16, amx, neon, dotprod or i8mm", .{name});
        } else |_| {}
    }
    if (wanted >= c.KT_ISA_COUNT) return status.invalid("isa is {d}", .{wanted});
    if (wanted == c.KT_ISA_AUTO) wanted = strongest;
    if ((mask >> @intCast(wanted)) & 1 == 0)
        return status.unsupported("this CPU does not run the {s} kernels; the best it runs is {s}", .{ cpuid.names[wanted], cpuid.names[strongest] });
    out.* = wanted;
    return c.KT_OK;
}

pub export fn kt_ctx_create(options: ?*const c.kt_ctx_options_t, out: ?*?*c.kt_ctx_t) status.Status {
    const slot = out orelse return status.invalid("out is NULL", .{});
    slot.* = null;
    const given = options orelse return status.invalid("options are NULL", .{});
    if (given.struct_size < @sizeOf(c.kt_ctx_options_t)) return status.invalid("options.struct_size is {d}", .{given.struct_size});
    if (given.num_threads > 1024) return status.invalid("num_threads is {d}, at most 1024", .{given.num_threads});
    if (given.precision > c.KT_PRECISION_F32) return status.invalid("precision is {d}", .{given.precision});
    if (given.device != 0) return status.invalid("device {d}: there is 1", .{given.device});
    var level: cpuid.Level = undefined;
    const chosen = chooseLevel(given.isa, &level);
    if (chosen != c.KT_OK) return chosen;
    const found = cpuid.cores(gpa) catch |err| return status.fail(c.KT_ERR_INTERNAL, "cannot count cores: {s}", .{@errorName(err)});
    defer found.deinit(gpa);
    const threads = if (given.num_threads == 0) found.physical else given.num_threads;
    // Pinning more threads than CPUs would put two on one for good.
    const pin = given.pin_threads == 1 and threads <= found.topology.cpus.len;
    const nodes = found.topology.nodeCount(given.numa_nodes, threads);
    const places = found.topology.places(gpa, threads, nodes, pin) catch return status.outOfMemory(threads * @sizeOf(topology.Place));
    defer gpa.free(places);
    const ctx = gpa.create(Ctx) catch return status.outOfMemory(@sizeOf(Ctx));
    const pool = Pool.create(gpa, places, if (given.spin_us == 0) default_spin_us else given.spin_us) catch |err| {
        gpa.destroy(ctx);
        return status.fail(c.KT_ERR_INTERNAL, "cannot start {d} threads: {s}", .{ threads, @errorName(err) });
    };
    ctx.* = .{ .isa = tableOf(level), .level = level, .precision = given.precision, .pool = pool, .ahead = cpuid.ahead(gpa) };
    if (nodes == found.topology.nodes.len) for (found.topology.nodes, ctx.system_nodes[0..nodes]) |number, *slot_of| {
        slot_of.* = number;
    };
    amx.chooseTokens(ctx.isa, ctx.fast());
    slot.* = @ptrCast(ctx);
    return c.KT_OK;
}

pub export fn kt_ctx_destroy(handle: ?*c.kt_ctx_t) void {
    const ctx = from(handle) orelse return;
    if (ctx.recording) |graph| graph.destroy();
    if (ctx.started) |started| started.destroy();
    ctx.pool.destroy(gpa);
    gpa.free(ctx.scratch);
    ctx.magic = 0;
    gpa.destroy(ctx);
}

export fn kt_ctx_query(handle: ?*c.kt_ctx_t, out: ?*c.kt_ctx_info_t) status.Status {
    const ctx = from(handle) orelse return c.KT_ERR_INVALID_ARG;
    const info = out orelse return status.invalid("out is NULL", .{});
    info.num_threads = ctx.pool.num_threads;
    info.isa = ctx.level;
    info.precision = ctx.precision;
    info.num_nodes = ctx.pool.num_nodes;
    return c.KT_OK;
}

export fn kt_ctx_set_precision(handle: ?*c.kt_ctx_t, precision: u32) status.Status {
    const ctx = from(handle) orelse return c.KT_ERR_INVALID_ARG;
    if (precision > c.KT_PRECISION_F32) return status.invalid("precision is {d}", .{precision});
    ctx.precision = precision;
    return c.KT_OK;
}

pub export fn kt_cpu_query(out: ?*c.kt_cpu_info_t) status.Status {
    const info = out orelse return status.invalid("out is NULL", .{});
    const found = cpuid.cores(gpa) catch |err| return status.fail(c.KT_ERR_INTERNAL, "cannot count cores: {s}", .{@errorName(err)});
    defer found.deinit(gpa);
    info.isa_mask = cpuid.isaMask();
    info.physical_cores = found.physical;
    info.logical_cores = found.logical;
    info.quota_millis = if (found.quota) |cpus| @intFromFloat(@min(cpus * 1000, 4e9)) else 0;
    info.memory_bytes = @intCast(std.process.totalSystemMemory() catch 0);
    info.memory_free_bytes = freeMemory() orelse info.memory_bytes;
    info.l2_bytes = if (builtin.os.tag == .linux) cpuid.cacheBytes(2) else 0;
    info.l3_bytes = if (builtin.os.tag == .linux) cpuid.cacheBytes(3) else 0;
    return c.KT_OK;
}

/// MemAvailable of /proc/meminfo: what can be taken without swapping.
fn freeMemory() ?i64 {
    if (builtin.os.tag != .linux) return null;
    const file = std.fs.openFileAbsolute("/proc/meminfo", .{}) catch return null;
    defer file.close();
    var buffer: [4096]u8 = undefined;
    const text = buffer[0 .. file.readAll(&buffer) catch return null];
    const key = "MemAvailable:";
    const start = (std.mem.indexOf(u8, text, key) orelse return null) + key.len;
    const end = std.mem.indexOfPos(u8, text, start, " kB") orelse return null;
    return 1024 * (std.fmt.parseInt(i64, std.mem.trim(u8, text[start..end], " "), 10) catch return null);
}

export fn kt_backend_name() [*:0]const u8 {
    return "cpu";
}

test "a context comes up on the best level, refuses nonsense, and is checked after destruction" {
    var handle: ?*c.kt_ctx_t = null;
    var options: c.kt_ctx_options_t = std.mem.zeroes(c.kt_ctx_options_t);
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_ctx_create(&options, &handle));
    options.struct_size = @sizeOf(c.kt_ctx_options_t);
    options.num_threads = 2;
    try std.testing.expectEqual(c.KT_OK, kt_ctx_create(&options, &handle));
    var info: c.kt_ctx_info_t = undefined;
    try std.testing.expectEqual(c.KT_OK, kt_ctx_query(handle, &info));
    try std.testing.expectEqual(@as(u32, 2), info.num_threads);
    kt_ctx_destroy(handle);
    options.isa = 99;
    try std.testing.expectEqual(c.KT_ERR_INVALID_ARG, kt_ctx_create(&options, &handle));
}

/// For tests: a context that computes with one thread.
pub fn ofOneThread() !?*c.kt_ctx_t {
    var options: c.kt_ctx_options_t = std.mem.zeroes(c.kt_ctx_options_t);
    options.struct_size = @sizeOf(c.kt_ctx_options_t);
    options.num_threads = 1;
    var handle: ?*c.kt_ctx_t = null;
    try std.testing.expectEqual(c.KT_OK, kt_ctx_create(&options, &handle));
    return handle;
}
